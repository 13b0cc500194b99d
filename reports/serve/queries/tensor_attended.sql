-- Each attention weight of one layer in one pass, times the length of the value that it weighs.
WITH lengths AS (
  SELECT t.run_id, h.head,
         list(norm(t.vector[h.head * len(t.vector) // r.num_kv_heads + 1 : (h.head + 1) * len(t.vector) // r.num_kv_heads])
              ORDER BY t.position) AS lengths
  FROM tensor_of($run, 'v') AS t
  JOIN runs AS r ON r.run_id = t.run_id
  JOIN (SELECT unnest(range(256)) AS head) AS h ON h.head < r.num_kv_heads
  WHERE t.prompt_id = $prompt AND t.layer = $layer
  GROUP BY t.run_id, h.head
)
SELECT a.layer, a.head, a.position,
       list_transform(list_zip(a.weights, l.lengths[: len(a.weights)]), lambda pair: pair[1] * pair[2]) AS attended
FROM attention_of($run) AS a
JOIN runs AS r ON r.run_id = a.run_id
JOIN lengths AS l ON l.run_id = a.run_id AND l.head = a.head * r.num_kv_heads // r.num_heads
WHERE a.prompt_id = $prompt AND a.step = $step AND a.layer = $layer
ORDER BY a.head, a.position
