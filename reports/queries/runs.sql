-- The runs of this report, oldest first.
SELECT run_id, scenario, model_id, arch, num_layers, hidden_size, num_heads, num_kv_heads, vocab_size, dtype, device,
       store_dtype, seed, created_at, finished_at, env_json, bytes, coalesce(s.numbers, 0) * hidden_size AS numbers
FROM runs
LEFT JOIN (SELECT run_id, sum(n_rows) AS numbers FROM files WHERE dataset = 'states' GROUP BY run_id) AS s USING (run_id)
WHERE list_contains($runs, run_id)
ORDER BY created_at, run_id
