-- The tokens that each state has seen, at most 96 evenly spread, in all layers: alab computes the singular values of these vectors without their mean.
WITH seen AS (
  SELECT t.*, row_number() OVER (PARTITION BY t.place ORDER BY t.position) - 1 AS number, count(*) OVER (PARTITION BY t.place) AS n
  FROM tokens_by_ref($refs) AS t
)
SELECT s.place, v.layer, v.vector::FLOAT[] AS vector
FROM seen AS s
JOIN tensor_of([_ref_run(ref) FOR ref IN $refs], $site) AS v
  ON v.run_id = s.run_id AND v.prompt_id = s.prompt_id AND v.position = s.position
WHERE s.number % greatest(1, ceil(s.n / 96)) = 0
ORDER BY s.place, v.layer, s.position
