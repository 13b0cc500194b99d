-- Summary over the layers of how far the state moved, per site.
SELECT run_id, prompt_id, site, layers, cosine_mean, cosine_std, cosine_median, cosine_min, cosine_min_layer,
       mae_mean, mae_std, mae_median, mae_max, mae_max_layer,
       jaccard_mean, jaccard_std, jaccard_median, jaccard_min, jaccard_min_layer
FROM intra_run_summary($runs)
ORDER BY list_position($runs, run_id), prompt_id, site
