-- Summary over the conversations of what replying changed, per site.
SELECT compared, site, count(*) AS conversations,
       avg(cosine_mean) AS cosine_mean, stddev_pop(cosine_mean) AS cosine_std, median(cosine_mean) AS cosine_median,
       min(cosine_mean) AS cosine_min, max(cosine_mean) AS cosine_max,
       avg(mae_mean) AS mae_mean, stddev_pop(mae_mean) AS mae_std, median(mae_mean) AS mae_median,
       min(mae_mean) AS mae_min, max(mae_mean) AS mae_max,
       avg(jaccard_mean) AS jaccard_mean, stddev_pop(jaccard_mean) AS jaccard_std,
       median(jaccard_mean) AS jaccard_median, min(jaccard_mean) AS jaccard_min, max(jaccard_mean) AS jaccard_max
FROM intra_summary_rows
GROUP BY compared, site
ORDER BY compared, site
