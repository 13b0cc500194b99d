-- intra_run_report.csv: what replying changed, per run and site, as text with four decimals.
SELECT CASE s.prompt_id WHEN 0 THEN s.run_id ELSE s.run_id || ' · ' || s.prompt_id END AS run,
       p.generated_text AS generated, asked.content AS prompt, s.site AS source,
       CASE WHEN isfinite(cosine_mean) THEN printf('%.4f', cosine_mean) END AS mean_cosine, CASE WHEN isfinite(cosine_std) THEN printf('%.4f', cosine_std) END AS std_cosine,
       CASE WHEN isfinite(cosine_median) THEN printf('%.4f', cosine_median) END AS median_cosine, CASE WHEN isfinite(cosine_min) THEN printf('%.4f', cosine_min) END AS min_cosine,
       cosine_min_layer AS most_divergent_layer,
       CASE WHEN isfinite(mae_mean) THEN printf('%.4f', mae_mean) END AS mean_MAE, CASE WHEN isfinite(mae_std) THEN printf('%.4f', mae_std) END AS std_MAE,
       CASE WHEN isfinite(mae_median) THEN printf('%.4f', mae_median) END AS median_MAE, mae_max_layer AS max_MAE_layer,
       CASE WHEN isfinite(jaccard_mean) THEN printf('%.4f', jaccard_mean) END AS mean_overlap, CASE WHEN isfinite(jaccard_std) THEN printf('%.4f', jaccard_std) END AS std_overlap,
       CASE WHEN isfinite(jaccard_median) THEN printf('%.4f', jaccard_median) END AS median_overlap, CASE WHEN isfinite(jaccard_min) THEN printf('%.4f', jaccard_min) END AS min_overlap,
       jaccard_min_layer AS min_overlap_layer
FROM intra_summary_rows AS s
LEFT JOIN prompts AS p USING (run_id, prompt_id)
LEFT JOIN (SELECT run_id, prompt_id, max_by(content, message_index) AS content FROM messages
           WHERE NOT is_generated GROUP BY ALL) AS asked USING (run_id, prompt_id)
ORDER BY s.run_id, s.prompt_id, s.site
