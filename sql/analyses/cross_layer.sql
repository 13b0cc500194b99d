-- Cosine of every layer with every other at the last token of one forward pass: a square matrix in long form.
--
-- No rows where the site was not captured (`capture.hidden_states`, `qkv`, `mlp` and `layers` of the scenario).
-- @param run_id a run id, `latest`, or a list of these
-- @param step 0-based forward pass; 0 is the prefill
-- @param site a site of `activations`, such as hidden_out
-- @param prompt 0-based conversation within the run, NULL for all of them; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column layer_a 0-based decoder block
-- @column layer_b 0-based decoder block
-- @column cosine cosine of the two layers' vectors; NULL where one is all zeros
-- @example select * from cross_layer_cosine('latest', 0, 'hidden_out') where layer_b = layer_a + 1
CREATE OR REPLACE MACRO cross_layer_cosine(run_id, step, site, prompt := 0) AS TABLE
WITH last AS MATERIALIZED (
  SELECT t.run_id, t.prompt_id, t.layer, t.vector::DOUBLE[] AS vector, norm(t.vector) AS norm
  FROM tensor_of(run_id, site) AS t
  JOIN _last_positions_of(run_id) AS l
    ON t.run_id = l.run_id AND t.prompt_id = l.prompt_id AND t.step = l.step AND t.position = l.position
  WHERE (prompt IS NULL OR t.prompt_id = prompt) AND t.step = step AND l.step = step
)
SELECT c.run_id, c.prompt_id, layer_a, layer_b, _clamp(x) AS cosine
FROM (SELECT a.run_id, a.prompt_id, a.layer AS layer_a, b.layer AS layer_b,
             list_inner_product(a.vector, b.vector) / nullif(a.norm * b.norm, 0) AS x
      FROM last AS a JOIN last AS b ON a.run_id = b.run_id AND a.prompt_id = b.prompt_id) AS c
ORDER BY c.run_id, c.prompt_id, layer_a, layer_b;
