-- Cosine, mean absolute difference and top-1% overlap of many pairs of vectors at once.
--
-- The macros `cosine`, `mae` and `top_jaccard` say the same one pair at a time; over thousands of pairs this takes
-- less than half their time.
-- @param pairs name of a table or view with the columns `id` (unique), `a` and `b` (vectors of the same width)
-- @column id id of the pair
-- @column cosine cosine of a and b; NULL where one is all zeros
-- @column mae mean absolute difference
-- @column jaccard overlap of the largest 1% of the dimensions
-- @example select * from compare_pairs('_example_pairs')
CREATE OR REPLACE MACRO compare_pairs(pairs) AS TABLE
SELECT id, _clamp(dot / nullif(sqrt(aa * bb), 0)) AS cosine, mae, _overlap(top_a, top_b) AS jaccard
FROM (
  SELECT id, sum(x * y) AS dot, sum(x * x) AS aa, sum(y * y) AS bb, sum(abs(x - y)) / count(*) AS mae,
         max(size_x, k) AS top_a, max(size_y, k) AS top_b
  FROM (
    SELECT id, x::DOUBLE AS x, y::DOUBLE AS y, _magnitude(x, dim) AS size_x, _magnitude(y, dim) AS size_y, k
    FROM (
      SELECT id, unnest(a) AS x, unnest(b) AS y, unnest(range(len(a))) AS dim, k
      FROM (SELECT id, a, _as_wide(a, b) AS b, _top_count(len(a), 0.01) AS k FROM query_table(pairs))
    )
  )
  GROUP BY id
);
