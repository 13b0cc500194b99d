-- How differently each head of a layer spreads its attention over two states' aligned tokens: total variation distance, tokens that are not aligned counted as one.
WITH aligned AS MATERIALIZED (
  SELECT t.pair, t.pairs, t.position_a, t.position_b, t.token_a, t.token_b FROM tokens_aligned($refs, $alignment) AS t
  WHERE t.place_a = 0 AND t.place_b = 1
), sides AS (
  SELECT DISTINCT t.place, t.run_id, t.prompt_id FROM tokens_by_ref($refs) AS t
), weights AS MATERIALIZED (
  SELECT s.place, w.head, w.position, w.weights
  FROM attention_of([_ref_run(ref) FOR ref IN $refs]) AS w
  JOIN sides AS s ON s.run_id = w.run_id AND s.prompt_id = w.prompt_id
  WHERE w.layer = $layer
), queries AS MATERIALIZED (
  SELECT q.pair, q.position_a, q.position_b, q.token_a, q.token_b, x.head, x.weights AS a, y.weights AS b,
         list_sum(x.weights)::DOUBLE AS all_a, list_sum(y.weights)::DOUBLE AS all_b, row_number() OVER () AS id
  FROM aligned AS q
  JOIN weights AS x ON x.place = 0 AND x.position = q.position_a
  JOIN weights AS y ON y.place = 1 AND y.position = q.position_b AND y.head = x.head
  WHERE q.pair % greatest(1, ceil(q.pairs / 64)) = 0
), keys AS (
  SELECT q.id, q.a[k.position_a + 1]::DOUBLE AS a, q.b[k.position_b + 1]::DOUBLE AS b
  FROM queries AS q JOIN aligned AS k ON k.position_a <= q.position_a AND k.position_b <= q.position_b
), sums AS (
  SELECT id, sum(abs(a - b)) AS apart, sum(a) AS a, sum(b) AS b FROM keys GROUP BY id
)
SELECT q.pair, q.head, q.token_a, q.token_b, q.position_a, q.position_b,
       0.5 * (s.apart + abs((q.all_a - s.a) - (q.all_b - s.b))) AS variation,
       q.all_a - s.a AS elsewhere_a, q.all_b - s.b AS elsewhere_b
FROM queries AS q JOIN sums AS s ON s.id = q.id
ORDER BY q.pair, q.head
