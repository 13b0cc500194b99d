-- Every pair of runs that could be compared, and why some are left out.
--
-- Runs compare where their residual streams are equally wide and their models have as many layers; then state
-- with state of the same conversation, site and layer.
-- @column run_a id of the older run
-- @column run_b id of the newer run
-- @column comparable whether `inter_run_all` has rows for the pair
-- @column reason why not; NULL where it has
-- @example select reason, count(*) from run_pairs() group by reason
CREATE OR REPLACE MACRO run_pairs() AS TABLE
SELECT run_a, run_b, reason IS NULL AS comparable, reason
FROM (
  SELECT a.run_id AS run_a, b.run_id AS run_b,
         CASE WHEN a.hidden_size <> b.hidden_size
              THEN 'the vectors are ' || a.hidden_size || ' and ' || b.hidden_size || ' wide'
              WHEN a.num_layers <> b.num_layers
              THEN 'the models have ' || a.num_layers || ' and ' || b.num_layers || ' layers'
              WHEN NOT _has('states', a.run_id) THEN a.run_id || ' has no states'
              WHEN NOT _has('states', b.run_id) THEN b.run_id || ' has no states' END AS reason
  FROM runs AS a JOIN runs AS b ON (a.created_at, a.run_id) < (b.created_at, b.run_id)
)
ORDER BY run_a, run_b;

-- Two runs: the initial and final states of one against those of the other.
--
-- No rows where the runs do not compare (`run_pairs` says why), and none for a run with itself.
-- @param run_a a run id or `latest`
-- @param run_b a run id or `latest`
-- @column run_a id of the first run
-- @column run_b id of the second run
-- @column prompt_id 0-based conversation, the same in both runs
-- @column state initial or final
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select state, site, avg(cosine) from inter_run('latest', 'another_run') group by all
CREATE OR REPLACE MACRO inter_run(run_a, run_b) AS TABLE
SELECT resolve_run(run_a) AS run_a, resolve_run(run_b) AS run_b,
       c.a.prompt_id, c.a.state, c.a.site, c.a.layer, c.cosine, c.mae, c.jaccard
FROM _compare_states([run_a, run_b], 'inter') AS c
ORDER BY c.a.prompt_id, c.a.state DESC, c.a.site, c.a.layer;

-- Every pair of comparable runs: initial with initial and final with final state.
--
-- Reads the states of the whole lake; `run_pairs` names the pairs that are left out, with the reason.
-- @column run_a id of the older run
-- @column run_b id of the newer run
-- @column prompt_id 0-based conversation, the same in both runs
-- @column state initial or final
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select run_a, run_b, avg(cosine) from inter_run_all() where site = 'hidden_out' group by all
CREATE OR REPLACE MACRO inter_run_all() AS TABLE
FROM inter_run_among(string_split(trim(_runs_with('states'), '|'), '|'));
