-- What the weights of each run are kept by; the newest run of a model comes last.
SELECT run_id, model_id, coalesce(weights_hash, model_id)
FROM runs
WHERE NOT contains(model_id, '|')
ORDER BY created_at, run_id;
