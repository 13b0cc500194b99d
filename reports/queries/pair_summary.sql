-- Every pair of runs, per state and site: summary over the layers.
SELECT c.run_a, c.run_b, prompt_id, state, site, unnest(_spread(cosine, mae, jaccard, layer))
FROM inter_run_among($runs) AS c
GROUP BY c.run_a, c.run_b, prompt_id, state, site
ORDER BY c.run_a, c.run_b, prompt_id, state DESC, site
