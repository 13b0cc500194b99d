-- Every two states at a site, in both orders: at one layer, or the mean over the layers.
WITH pairs AS MATERIALIZED (
  SELECT place_a, place_b, avg(cosine) AS cosine, avg(jaccard) AS jaccard, avg(mae) AS mae
  FROM pairs_by_ref($refs, site := $site, layer := try_cast($depth AS INTEGER))
  GROUP BY place_a, place_b
)
SELECT * FROM pairs
UNION ALL SELECT place_b, place_a, cosine, jaccard, mae FROM pairs
ORDER BY place_a, place_b
