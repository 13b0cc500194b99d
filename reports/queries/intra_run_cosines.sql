-- intra_run_cosines.csv: what replying changed, per run, site and layer, as text with four decimals.
SELECT run, site AS source, layer, CASE WHEN isfinite(cosine) THEN printf('%.4f', cosine) END AS cosine, CASE WHEN isfinite(mae) THEN printf('%.4f', mae) END AS "MAE",
       CASE WHEN isfinite(jaccard) THEN printf('%.4f', jaccard) END AS overlap
FROM intra_rows
ORDER BY run_id, prompt_id, site, layer
