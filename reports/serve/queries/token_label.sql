-- How far each token's vector reaches along the direction from one label of a dataset to another.
SELECT t.position, n.token, n.role, project(t.vector, d.vector) AS value
FROM tensor_of($run, $site) AS t
JOIN label_direction($source, $label_column, $positive, $negative) AS d ON d.layer = t.layer AND d.site = $site
LEFT JOIN tokens AS n ON n.run_id = t.run_id AND n.prompt_id = t.prompt_id AND n.position = t.position
WHERE t.prompt_id = $prompt AND t.layer = $layer
ORDER BY t.position
