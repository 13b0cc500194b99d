-- The embeddings or logits of one pass: a vector for each token that was kept.
SELECT o.position, CASE $site WHEN 'embeddings' THEN o.embeddings ELSE o.logits END AS vector
FROM outputs_of($run) AS o
WHERE o.prompt_id = $prompt AND o.step = $step
ORDER BY o.position
