-- Every pair of runs, per state and site: summary over the layers.
SELECT c.run_a, c.run_b, prompt_id, state, site, count(*) AS layers,
       avg(cosine) AS cosine_mean, stddev_pop(cosine) AS cosine_std, median(cosine) AS cosine_median,
       min(cosine) AS cosine_min, min_by(layer, (cosine, layer)) FILTER (cosine IS NOT NULL) AS cosine_min_layer,
       avg(mae) AS mae_mean, stddev_pop(mae) AS mae_std, median(mae) AS mae_median,
       max(mae) AS mae_max, max_by(layer, (mae, -layer)) AS mae_max_layer,
       avg(jaccard) AS jaccard_mean, stddev_pop(jaccard) AS jaccard_std, median(jaccard) AS jaccard_median,
       min(jaccard) AS jaccard_min, min_by(layer, (jaccard, layer)) AS jaccard_min_layer
FROM inter_run_among($runs) AS c
GROUP BY c.run_a, c.run_b, prompt_id, state, site
ORDER BY c.run_a, c.run_b, prompt_id, state DESC, site
