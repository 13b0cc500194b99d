-- The tokens of one conversation, with what the model held likeliest next where a pass ended.
SELECT t.position, t.token, t.token_id, t.role, t.message_index, t.is_template, t.is_generated, t.step,
       p.entropy, p.top1_prob, p.likeliest
FROM tokens AS t
LEFT JOIN (
  SELECT s.seq_len - 1 AS position, s.entropy, s.top1_prob,
         (SELECT arg_min(n.token, n.rank) FROM top_tokens AS n
          WHERE n.run_id = $run AND n.prompt_id = $prompt AND n.step = s.step) AS likeliest
  FROM steps AS s WHERE s.run_id = $run AND s.prompt_id = $prompt
) AS p ON p.position = t.position
WHERE t.run_id = $run AND t.prompt_id = $prompt
ORDER BY t.position
