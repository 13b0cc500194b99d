-- The value of one dimension of a site at every token of a conversation.
SELECT v.position, v.step, v.token, v.role,
       CASE WHEN t.is_generated THEN 'written by the model' ELSE 'read in the prompt' END AS reading_pass, v.value AS activation
FROM neuron_trajectory($run, $layer, $site, $neuron) AS v
LEFT JOIN tokens AS t ON t.run_id = v.run_id AND t.prompt_id = v.prompt_id AND t.position = v.position
WHERE v.prompt_id = $prompt AND $neuron >= 0 AND v.value IS NOT NULL
ORDER BY v.position
