-- Any two last-token states with each other, within a run or across runs, per site and layer.
--
-- Say of each side which run and which kind of state it is, and where wanted which one: `index_a` is a state's
-- `state_index` (of a snapshot the message that it has seen), `label_a` the label of a reference, `prompt_a` the
-- conversation. What is named on neither side pairs like with like: message with the same message, label with label,
-- conversation with conversation. What is named on one side only stands against all of the other. So
--
-- - `compare_states('latest', 'snapshot', 'latest', 'snapshot', index_a := 1, index_b := 3)`: two messages of a run
-- - `compare_states('a', 'snapshot', 'b', 'snapshot')`: each message of a run with the same message of another
-- - `compare_states('a', 'initial', 'a', 'initial', prompt_a := 0)`: one conversation with every other of its run
-- - `compare_states('a', 'reference', 'b', 'reference')`: each label in two runs
-- - `compare_states('latest', 'snapshot', 'latest', 'final')`: every message with how its reply ended
--
-- No state is compared with itself, and none with one of another width or of a model with other layers.
-- @param run_a a run id or `latest`
-- @param state_a initial, final, snapshot, reference or example
-- @param run_b a run id or `latest`
-- @param state_b initial, final, snapshot, reference or example
-- @param index_a which of the first run's: its state_index; give it by name
-- @param index_b which of the second run's; give it by name
-- @param label_a label of a reference or example of the first run; give it by name
-- @param label_b likewise of the second; give it by name
-- @param prompt_a 0-based conversation of the first run; give it by name
-- @param prompt_b 0-based conversation of the second run; give it by name
-- @column run_a id of the first run
-- @column prompt_a 0-based conversation within it; NULL for references and examples
-- @column state_a kind of the first state
-- @column index_a its state_index, as in the view `states`
-- @column label_a its label, of a reference or example
-- @column run_b id of the second run
-- @column prompt_b 0-based conversation within it
-- @column state_b kind of the second state
-- @column index_b its state_index
-- @column label_b its label
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @column std population standard deviation over the dimensions of the first minus the second
-- @example
-- select layer, cosine, std from compare_states('latest', 'snapshot', 'latest', 'snapshot', index_a := 1, index_b := 3)
-- where site = 'hidden_out'
-- @example
-- select index_a, avg(cosine) from compare_states('latest', 'snapshot', 'another_run', 'snapshot') group by index_a
CREATE OR REPLACE MACRO compare_states(
  run_a, state_a, run_b, state_b, index_a := NULL, index_b := NULL, label_a := NULL, label_b := NULL,
  prompt_a := NULL, prompt_b := NULL
) AS TABLE
WITH points AS MATERIALIZED (
  SELECT row_number() OVER () AS id, s.run_id AS run, s.prompt_id AS prompt, s.state, s.state_index, s.label, s.site,
         s.layer, s.vector, len(s.vector) AS width, norm(s.vector) AS norm,
         top_dims(s.vector, _top_count(len(s.vector), 0.01)) AS top, r.num_layers
  FROM states_of([run_a, run_b]) AS s JOIN runs AS r ON r.run_id = s.run_id
  WHERE s.state IN (state_a, state_b)
), pairs AS (
  SELECT a.id AS a, b.id AS b, _eights(a.vector) AS x, _eights(b.vector) AS y
  FROM points AS a JOIN points AS b
    ON a.site = b.site AND a.layer = b.layer AND a.width = b.width AND a.num_layers = b.num_layers AND a.id <> b.id
  WHERE a.run = resolve_run(run_a) AND a.state = state_a AND b.run = resolve_run(run_b) AND b.state = state_b
    AND (index_a IS NULL OR a.state_index = index_a) AND (index_b IS NULL OR b.state_index = index_b)
    AND (label_a IS NULL OR a.label = label_a) AND (label_b IS NULL OR b.label = label_b)
    AND (prompt_a IS NULL OR a.prompt = prompt_a) AND (prompt_b IS NULL OR b.prompt = prompt_b)
    -- what is named on neither side pairs like with like; the step of a final state and the place of a reference in
    -- its scenario name nothing
    AND (coalesce(index_a, index_b) IS NOT NULL OR state_a <> state_b OR state_a <> 'snapshot'
         OR a.state_index = b.state_index)
    AND (coalesce(label_a, label_b) IS NOT NULL OR coalesce(a.label = b.label, true))
    AND (coalesce(prompt_a, prompt_b) IS NOT NULL OR coalesce(a.prompt = b.prompt, true))
), scores AS (
  SELECT a, b, sum(_distance_of_eights(u, v)) AS distance, sum(_dot_of_eights(u, v)) AS dot,
         sum(_difference_of_eights(u, v)) AS difference, sum(_square_of_eights(u, v)) AS square
  -- the empty half keeps the optimizer of DuckDB 1.5.0 to 1.5.5 from taking single fields out of `unnest`, in which it
  -- looks for names that they do not have
  FROM (SELECT a, b, unnest(x) AS u, unnest(y) AS v FROM pairs UNION ALL SELECT NULL, NULL, NULL, NULL WHERE false)
  GROUP BY a, b
)
SELECT a.run AS run_a, a.prompt AS prompt_a, a.state AS state_a, a.state_index AS index_a, a.label AS label_a,
       b.run AS run_b, b.prompt AS prompt_b, b.state AS state_b, b.state_index AS index_b, b.label AS label_b,
       a.site, a.layer, _clamp(s.dot / nullif(a.norm * b.norm, 0)) AS cosine, s.distance / a.width AS mae,
       _jaccard(_shared(a.top, b.top), len(a.top)) AS jaccard,
       sqrt(greatest(0, s.square / a.width - (s.difference / a.width) ** 2)) AS std
FROM scores AS s JOIN points AS a ON a.id = s.a JOIN points AS b ON b.id = s.b
ORDER BY ALL;
