-- Summary over all pairs of runs, per state and site.
SELECT state, site, count(*) AS pairs,
       avg(cosine_mean) AS cosine_mean, stddev_pop(cosine_mean) AS cosine_std, median(cosine_mean) AS cosine_median,
       min(cosine_mean) AS cosine_min, max(cosine_mean) AS cosine_max,
       avg(mae_mean) AS mae_mean, stddev_pop(mae_mean) AS mae_std, median(mae_mean) AS mae_median,
       min(mae_mean) AS mae_min, max(mae_mean) AS mae_max,
       avg(jaccard_mean) AS jaccard_mean, stddev_pop(jaccard_mean) AS jaccard_std,
       median(jaccard_mean) AS jaccard_median, min(jaccard_mean) AS jaccard_min, max(jaccard_mean) AS jaccard_max
FROM pair_summary_rows
GROUP BY state, site
ORDER BY state DESC, site
