-- Length of the value that each key-value head has of each token.
SELECT t.position, h.head,
       norm(t.vector[h.head * len(t.vector) // r.num_kv_heads + 1 : (h.head + 1) * len(t.vector) // r.num_kv_heads])
         AS length
FROM tensor_of($run, 'v') AS t
JOIN runs AS r ON r.run_id = t.run_id
JOIN (SELECT unnest(range(256)) AS head) AS h ON h.head < r.num_kv_heads
WHERE t.prompt_id = $prompt AND t.layer = $layer
ORDER BY h.head, t.position
