-- intra_run_report.csv: what replying changed, per run and site, as text with four decimals.
SELECT CASE s.prompt_id WHEN 0 THEN s.run_id ELSE s.run_id || ' · ' || s.prompt_id END AS run,
       p.generated_text AS generated, asked.content AS prompt, s.site AS source,
       _decimals(cosine_mean) AS mean_cosine, _decimals(cosine_std) AS std_cosine,
       _decimals(cosine_median) AS median_cosine, _decimals(cosine_min) AS min_cosine,
       cosine_min_layer AS most_divergent_layer,
       _decimals(mae_mean) AS mean_MAE, _decimals(mae_std) AS std_MAE,
       _decimals(mae_median) AS median_MAE, mae_max_layer AS max_MAE_layer,
       _decimals(jaccard_mean) AS mean_overlap, _decimals(jaccard_std) AS std_overlap,
       _decimals(jaccard_median) AS median_overlap, _decimals(jaccard_min) AS min_overlap,
       jaccard_min_layer AS min_overlap_layer
FROM intra_summary_rows AS s
LEFT JOIN prompts AS p USING (run_id, prompt_id)
LEFT JOIN (SELECT run_id, prompt_id, max_by(content, message_index) AS content FROM messages
           WHERE NOT is_generated GROUP BY ALL) AS asked USING (run_id, prompt_id)
WHERE s.compared = 'last token'
ORDER BY s.run_id, s.prompt_id, s.site
