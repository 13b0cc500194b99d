-- What each head of one layer moves to the tokens of one pass: means over its query tokens.
SELECT a.layer, a.head, avg(a.moved) AS moved, avg(a.available) AS available, avg(a.share) AS share, count(*) AS queries
FROM attended_value($run, layer := $layer, step := $step) AS a
WHERE a.prompt_id = $prompt
GROUP BY a.layer, a.head ORDER BY a.head
