-- How long the vector of each token is, at one layer and site.
SELECT t.position, n.token, n.role, norm(t.vector) AS value
FROM tensor_of($run, $site) AS t
LEFT JOIN tokens AS n ON n.run_id = t.run_id AND n.prompt_id = t.prompt_id AND n.position = t.position
WHERE t.prompt_id = $prompt AND t.layer = $layer
ORDER BY t.position
