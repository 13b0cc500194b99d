-- intra_run_cosines.csv: what replying changed, per run, site and layer, as text with four decimals.
SELECT run, site AS source, layer, _decimals(cosine) AS cosine, _decimals(mae) AS "MAE",
       _decimals(jaccard) AS overlap
FROM intra_rows
WHERE compared = 'last token'
ORDER BY run_id, prompt_id, site, layer
