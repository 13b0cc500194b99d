-- Linear CKA of every two states' aligned tokens at one layer, at most 64 of them, in both orders.
WITH pairs AS MATERIALIZED (
  SELECT place_a, place_b, positions, cka, cka_biased FROM cka_by_ref($refs, $alignment, $site, layer := $layer)
)
SELECT * FROM pairs
UNION ALL SELECT place_b, place_a, positions, cka, cka_biased FROM pairs
ORDER BY place_a, place_b
