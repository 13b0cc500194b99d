-- How far each layer's last-token state moved between the end of the prompt and the end of the reply.
SELECT run_id, prompt_id, CASE prompt_id WHEN 0 THEN run_id ELSE run_id || ' · ' || prompt_id END AS run,
       site, layer, cosine, mae, jaccard
FROM intra_run($runs)
ORDER BY list_position($runs, run_id), prompt_id, site, layer
