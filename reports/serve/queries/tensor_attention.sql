-- The attention weights of one layer in one pass: for each head and query token a weight for each token up to it.
SELECT a.layer, a.head, a.position, a.weights
FROM attention_of($run) AS a
WHERE a.prompt_id = $prompt AND a.step = $step AND a.layer = $layer
ORDER BY a.head, a.position
