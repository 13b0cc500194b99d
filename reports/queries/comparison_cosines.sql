-- comparison_cosines.csv: every pair of runs, per state, site and layer, as text with four decimals.
SELECT state, run_a || ' × ' || run_b || CASE prompt_id WHEN 0 THEN '' ELSE ' · ' || prompt_id END AS pair,
       run_a, run_b, site AS source, layer, _decimals(cosine) AS cosine, _decimals(mae) AS "MAE",
       _decimals(jaccard) AS overlap
FROM pair_rows
ORDER BY state DESC, run_a, run_b, prompt_id, site, layer
