-- comparison_report.csv: every pair of runs, per state and site, as text with four decimals.
WITH asked AS (
  SELECT p.run_id, p.prompt_id, any_value(p.generated_text) AS generated, max_by(m.content, m.message_index) AS prompt
  FROM prompts AS p LEFT JOIN messages AS m ON m.run_id = p.run_id AND m.prompt_id = p.prompt_id AND NOT m.is_generated
  GROUP BY ALL
)
SELECT s.state, s.run_a || ' × ' || s.run_b || CASE s.prompt_id WHEN 0 THEN '' ELSE ' · ' || s.prompt_id END AS pair,
       s.run_a, s.run_b, a.generated AS generated_a, b.generated AS generated_b, a.prompt AS prompt_a, b.prompt AS prompt_b,
       s.site AS source,
       _decimals(cosine_mean) AS mean_cosine, _decimals(cosine_std) AS std_cosine,
       _decimals(cosine_median) AS median_cosine, _decimals(cosine_min) AS min_cosine,
       cosine_min_layer AS most_divergent_layer,
       _decimals(mae_mean) AS mean_MAE, _decimals(mae_std) AS std_MAE,
       _decimals(mae_median) AS median_MAE, mae_max_layer AS max_MAE_layer,
       _decimals(jaccard_mean) AS mean_overlap, _decimals(jaccard_std) AS std_overlap,
       _decimals(jaccard_median) AS median_overlap, _decimals(jaccard_min) AS min_overlap,
       jaccard_min_layer AS min_overlap_layer
FROM pair_summary_rows AS s
LEFT JOIN asked AS a ON a.run_id = s.run_a AND a.prompt_id = s.prompt_id
LEFT JOIN asked AS b ON b.run_id = s.run_b AND b.prompt_id = s.prompt_id
ORDER BY s.state DESC, s.run_a, s.run_b, s.prompt_id, s.site
