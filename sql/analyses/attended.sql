-- What each head moves to a token: the length of the sum of the values that it attends to, each times its weight.
--
-- A weight alone says where a head looks; a head that looks at a token whose value is short moves next to nothing,
-- as heads do that rest on the first token. Measured before the output projection, in the head's own space, so heads
-- of one layer compare best. Where query heads share key-value heads each takes the values of its own. No rows where
-- attention or values were not captured (`capture.attention_weights`, `capture.qkv`), and none for a token before
-- which some values are missing. All layers of a long conversation take their time; `layer` and `step` narrow it.
-- @param run_id a run id, `latest`, or a list of these
-- @param layer 0-based decoder block, NULL for all; give it by name
-- @param step 0-based forward pass, NULL for all; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column layer 0-based decoder block
-- @column head 0-based attention head
-- @column position position of the query token, to which the values are moved
-- @column moved length of the weighted sum of the values
-- @column available weighted mean of the values' lengths: what would be moved if all pointed alike
-- @column share moved over available; small where the values cancel out; NULL where that is 0
-- @example select layer, head, avg(moved) from attended_value('latest', layer := 0, step := 0) group by all order by 3 desc
CREATE OR REPLACE MACRO attended_value(run_id, layer := NULL, step := NULL) AS TABLE
WITH queries AS MATERIALIZED (
  SELECT a.run_id AS run, a.prompt_id, a.step AS pass, a.layer AS of_layer, a.head, a.position,
         a.weights::DOUBLE[] AS weights, a.head * r.num_kv_heads // r.num_heads AS kv
  FROM attention_of(run_id) AS a JOIN runs AS r ON r.run_id = a.run_id
  WHERE (layer IS NULL OR a.layer = layer) AND (step IS NULL OR a.step = step)
), parts AS MATERIALIZED (  -- one key-value head of one token
  SELECT t.run_id AS run, t.prompt_id, t.layer AS of_layer, t.position, h.kv,
         t.vector[h.kv * len(t.vector) // r.num_kv_heads + 1 : (h.kv + 1) * len(t.vector) // r.num_kv_heads] AS part
  FROM tensor_of(run_id, 'v') AS t
  JOIN runs AS r ON r.run_id = t.run_id
  JOIN (SELECT unnest(range(256)) AS kv) AS h ON h.kv < r.num_kv_heads
  WHERE layer IS NULL OR t.layer = layer
), columns_of AS (  -- one dimension of it over all tokens
  SELECT p.run, p.prompt_id, p.of_layer, p.kv, dim, list(x::DOUBLE ORDER BY p.position) AS x
  FROM (SELECT *, unnest(part) AS x, unnest(range(len(part))) AS dim FROM parts) AS p
  GROUP BY p.run, p.prompt_id, p.of_layer, p.kv, dim
  HAVING max(p.position) = count(*) - 1
), lengths AS (
  SELECT p.run, p.prompt_id, p.of_layer, p.kv, list(norm(p.part) ORDER BY p.position) AS lengths
  FROM parts AS p GROUP BY p.run, p.prompt_id, p.of_layer, p.kv
), sums AS (
  SELECT q.run, q.prompt_id, q.pass, q.of_layer, q.head, q.position, q.kv, any_value(q.weights) AS weights,
         sqrt(sum(list_inner_product(q.weights, c.x[: len(q.weights)]) ** 2)) AS moved
  FROM queries AS q
  JOIN columns_of AS c
    ON c.run = q.run AND c.prompt_id = q.prompt_id AND c.of_layer = q.of_layer AND c.kv = q.kv
   AND len(c.x) >= len(q.weights)
  GROUP BY q.run, q.prompt_id, q.pass, q.of_layer, q.head, q.position, q.kv
), scored AS (
  SELECT s.*, list_inner_product(s.weights, l.lengths[: len(s.weights)]) AS available
  FROM sums AS s
  JOIN lengths AS l ON l.run = s.run AND l.prompt_id = s.prompt_id AND l.of_layer = s.of_layer AND l.kv = s.kv
)
SELECT s.run AS run_id, s.prompt_id, s.pass AS step, s.of_layer AS layer, s.head, s.position,
       s.moved, s.available, s.moved / nullif(s.available, 0) AS share
FROM scored AS s
ORDER BY s.run, s.prompt_id, s.pass, s.of_layer, s.head, s.position;
