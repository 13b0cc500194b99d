-- How the residual stream settles from layer to layer, at the last token of the prompt and of the reply.
--
-- Reads the run's states only. No rows without `capture.states`.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column state initial or final
-- @column layer 0-based decoder block
-- @column cosine_adjacent cosine of the stream that enters the layer and the stream that leaves it
-- @column relative_step length of what the layer adds, relative to the stream that enters it
-- @column cosine_last cosine of the stream that leaves this layer and the one that leaves the last captured layer
-- @example select layer, cosine_adjacent, relative_step from convergence('latest') where state = 'final'
CREATE OR REPLACE MACRO convergence(run_id) AS TABLE
SELECT i.run_id, i.prompt_id, i.state, i.layer,
       cosine(i.vector, o.vector) AS cosine_adjacent,
       euclidean(i.vector, o.vector) / nullif(norm(i.vector), 0) AS relative_step,
       cosine(o.vector, last_value(o.vector) OVER (PARTITION BY i.run_id, i.prompt_id, i.state ORDER BY i.layer
                                                   ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
       ) AS cosine_last
FROM states_of(run_id) AS i
JOIN states_of(run_id) AS o
  ON o.run_id = i.run_id AND o.prompt_id = i.prompt_id AND o.state = i.state AND o.layer = i.layer
WHERE i.site = 'hidden_in' AND o.site = 'hidden_out' AND i.state IN ('initial', 'final')
ORDER BY i.run_id, i.prompt_id, i.state DESC, i.layer;

-- The layer from which on the residual stream keeps pointing where it ends up.
-- @param run_id a run id, `latest`, or a list of these
-- @param threshold cosine with the last layer that counts as arrived; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column state initial or final
-- @column effective_depth first layer from which on every cosine with the last layer reaches the threshold
-- @column layers number of captured layers
-- @example select state, effective_depth, layers from effective_depth('latest', threshold := 0.5)
CREATE OR REPLACE MACRO effective_depth(run_id, threshold := 0.9) AS TABLE
SELECT t.run_id, prompt_id, state, min(layer) FILTER (worst >= threshold) AS effective_depth, count(*) AS layers
FROM (
  SELECT c.run_id, c.prompt_id, c.state, c.layer,
         min(c.cosine_last) OVER (PARTITION BY c.run_id, c.prompt_id, c.state ORDER BY c.layer DESC) AS worst
  FROM convergence(run_id) AS c
) AS t
GROUP BY t.run_id, prompt_id, state
ORDER BY t.run_id, prompt_id, state DESC;

-- Linear centred kernel alignment between the layers of two runs over the positions that both have.
--
-- 1 where two layers hold the same geometry of tokens up to rotation and scale, towards 0 where they share none;
-- the widths may differ. Compare runs over the same text. The cost grows with the square of the positions.
-- @param run_a a run id or `latest`
-- @param run_b a run id or `latest`
-- @param site a site of `activations`, such as hidden_out
-- @param positions how many of the shared positions to use at most, evenly spread; give it by name
-- @column layer_a 0-based decoder block of the first run
-- @column layer_b 0-based decoder block of the second run
-- @column positions number of positions used
-- @column cka alignment in 0 … 1; NULL where one layer's vectors are all the same
-- @example select * from linear_cka('latest', 'latest', 'hidden_out') where layer_a = layer_b
CREATE OR REPLACE MACRO linear_cka(run_a, run_b, site, positions := 100) AS TABLE
WITH vectors AS (
  SELECT 'a' AS side, t.prompt_id, t.position, t.layer, t.vector::DOUBLE[] AS vector FROM tensor_of(run_a, site) AS t
  UNION ALL
  SELECT 'b', t.prompt_id, t.position, t.layer, t.vector::DOUBLE[] FROM tensor_of(run_b, site) AS t
), both_have AS (
  SELECT prompt_id, v.position, row_number() OVER (ORDER BY prompt_id, v.position) - 1 AS place, count(*) OVER () AS n
  FROM vectors AS v GROUP BY prompt_id, v.position HAVING count(DISTINCT side) = 2
), chosen AS (
  SELECT prompt_id, s.position, place FROM both_have AS s WHERE place % ceil(n / positions) = 0
), points AS MATERIALIZED (
  SELECT side, layer, place, vector
  FROM vectors AS v JOIN chosen AS c ON c.prompt_id = v.prompt_id AND c.position = v.position
), gram AS (
  SELECT p.side, p.layer, p.place AS i, q.place AS j, list_inner_product(p.vector, q.vector) AS x
  FROM points AS p JOIN points AS q ON q.side = p.side AND q.layer = p.layer
), centered AS MATERIALIZED (
  SELECT side, layer, i, j, x - avg(x) OVER (PARTITION BY side, layer, i) - avg(x) OVER (PARTITION BY side, layer, j)
                             + avg(x) OVER (PARTITION BY side, layer) AS x
  FROM gram
), own AS (
  SELECT side, layer, sqrt(sum(x * x)) AS size FROM centered GROUP BY side, layer
), joint AS (
  SELECT a.layer AS layer_a, b.layer AS layer_b, sum(a.x * b.x) AS x, sqrt(count(*))::BIGINT AS n
  FROM centered AS a JOIN centered AS b ON a.i = b.i AND a.j = b.j
  WHERE a.side = 'a' AND b.side = 'b'
  GROUP BY a.layer, b.layer
)
SELECT layer_a, layer_b, n AS positions, _clamp(x / nullif(a.size * b.size, 0)) AS cka
FROM joint
JOIN own AS a ON a.side = 'a' AND a.layer = layer_a
JOIN own AS b ON b.side = 'b' AND b.layer = layer_b
ORDER BY layer_a, layer_b;
