-- One tensor of one pass: a vector for each token that was kept.
SELECT t.position, t.vector
FROM tensor_of($run, $site) AS t
WHERE t.prompt_id = $prompt AND t.step = $step AND t.layer = $layer
ORDER BY t.position
