-- The snapshots of one run with what is known about them.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the table `snapshots`
-- @example select message_index, role from snapshots_of('latest')
CREATE OR REPLACE MACRO snapshots_of(run_id) AS TABLE
SELECT s.* FROM snapshots AS s JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON s.run_id = asked;

-- The state after each message against each reference, per site and layer.
--
-- Reads the run's states only. No rows where the scenario has no `reference_states` or no `capture.hidden_states`.
-- The snapshot after the generated reply is here, marked `is_generated`; averages leave it out.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column role role of that message
-- @column is_generated true for the snapshot after the generated reply
-- @column label label of the reference
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the snapshot and the reference; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select label, avg(cosine) from snapshot_reference('latest') where site = 'hidden_out' group by label
CREATE OR REPLACE MACRO snapshot_reference(run_id) AS TABLE
SELECT c.a.run_id, c.a.prompt_id, c.a.state_index AS message_index, i.role, i.is_generated,
       c.b.label, c.a.site, c.a.layer, c.cosine, c.mae, c.jaccard
FROM _compare_states(run_id, 'reference') AS c
JOIN snapshots_of(run_id) AS i
  ON i.run_id = c.a.run_id AND i.prompt_id = c.a.prompt_id AND i.message_index = c.a.state_index
ORDER BY c.a.run_id, c.a.prompt_id, message_index, c.b.state_index, c.a.site, c.a.layer;

-- Cosine of the state after each message with each reference, raw or without the mean over the references.
--
-- Last-token states share a large common part, so raw cosines all lie close together; `centered := true` takes
-- the mean over the run's references off both sides first. One reference alone has nothing left then: NULL.
-- @param run_id a run id, `latest`, or a list of these
-- @param centered true to take the mean over the references off; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column role role of that message
-- @column is_generated true for the snapshot after the generated reply
-- @column label label of the reference
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the snapshot and the reference; NULL where one is all zeros
-- @example select label, avg(cosine) from snapshot_cosine('latest', centered := true) group by label
CREATE OR REPLACE MACRO snapshot_cosine(run_id, centered := false) AS TABLE
WITH vectors AS MATERIALIZED (
  SELECT row_number() OVER () AS id, s.run_id, s.prompt_id, s.state, s.state_index, s.label, s.site, s.layer,
         s.vector::DOUBLE[] AS vector
  FROM states_of(run_id) AS s
  WHERE s.state IN ('snapshot', 'reference')
), dots AS MATERIALIZED (
  SELECT a.id AS a, b.id AS b, list_inner_product(a.vector, b.vector) AS dot
  FROM vectors AS a JOIN vectors AS b ON a.run_id = b.run_id AND a.site = b.site AND a.layer = b.layer
  WHERE b.state = 'reference'
), points AS MATERIALIZED (
  -- with the references' mean m: v·m is the mean of v·r over the references r, and m·m the mean of r·m
  -- what is left of v, own − 2 v·m + m·m, is nothing where only rounding is left
  SELECT *, CASE WHEN own - 2 * with_mean + mean_own > 1e-13 * own OR isnan(own)
                 THEN own - 2 * with_mean + mean_own END AS apart
  FROM (
    SELECT *, avg(with_mean) FILTER (state = 'reference') OVER (PARTITION BY p.run_id, site, layer) AS mean_own
    FROM (
      SELECT v.* EXCLUDE (vector), list_inner_product(v.vector, v.vector) AS own, m.with_mean
      FROM vectors AS v
      JOIN (SELECT a, CASE WHEN centered THEN avg(dot) ELSE 0 END AS with_mean FROM dots GROUP BY a) AS m
        ON m.a = v.id
    ) AS p
  )
), cosines AS (
  -- (v − m)·(w − m) = v·w − v·m − w·m + m·m: inner products are enough
  SELECT a.run_id, a.prompt_id, a.state_index AS message_index, b.label, b.state_index AS ref_index, a.site, a.layer,
         (dots.dot - a.with_mean - b.with_mean + a.mean_own) / sqrt(a.apart * b.apart) AS x
  FROM dots JOIN points AS a ON a.id = dots.a JOIN points AS b ON b.id = dots.b
  WHERE a.state = 'snapshot'
)
SELECT c.run_id, c.prompt_id, c.message_index, i.role, i.is_generated,
       c.label, c.site, c.layer, _clamp(x) AS cosine
FROM cosines AS c
JOIN snapshots_of(run_id) AS i
  ON i.run_id = c.run_id AND i.prompt_id = c.prompt_id AND i.message_index = c.message_index
ORDER BY c.run_id, c.prompt_id, c.message_index, c.ref_index, c.site, c.layer;
