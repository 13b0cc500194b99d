-- The snapshots of one run with what is known about them.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the table `snapshots`
-- @example select message_index, role from snapshots_of('latest')
CREATE OR REPLACE MACRO snapshots_of(run_id) AS TABLE
SELECT s.* FROM snapshots AS s JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON s.run_id = asked;

-- The state after each message against each reference, per site and layer.
--
-- Reads the run's states only. No rows where the scenario has no `reference_states` or no `capture.hidden_states`.
-- The snapshot after the generated reply is here, marked `is_generated`; averages leave it out. Last-token states
-- share a large common part, so raw cosines all lie close together; the centred ones are without it.
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
-- @column centered_cosine cosine after the mean over the run's references was taken off both sides; NULL where nothing
--   is left of one, as with a single reference
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @column n examples that the reference is the mean of; `snapshot_interval` says how sure the cosines are
-- @example select label, avg(cosine) from snapshot_reference('latest') where site = 'hidden_out' group by label
CREATE OR REPLACE MACRO snapshot_reference(run_id) AS TABLE
WITH pairs AS MATERIALIZED (
  SELECT c.a, {'id': c.b.id, 'label': c.b.label, 'state_index': c.b.state_index} AS b,
         c.dot, c.cosine, c.mae, c.jaccard
  FROM _compare_states(run_id, 'reference') AS c
), points AS MATERIALIZED (
  -- with the references' mean m: v·m is the mean of v·r over the references r, and m·m the mean of r·m
  -- what is left of v, v·v − 2 v·m + m·m, is nothing where only rounding is left
  SELECT id, with_mean, mean_own,
         CASE WHEN own - 2 * with_mean + mean_own > 1e-13 * own OR isnan(own)
              THEN sqrt(own - 2 * with_mean + mean_own) END AS apart
  FROM (
    SELECT *, avg(with_mean) FILTER (state = 'reference') OVER (PARTITION BY asked, site, layer) AS mean_own
    FROM (
      SELECT a.id, a.run_id AS asked, a.state, a.site, a.layer, a.norm ** 2 AS own, avg(dot) AS with_mean
      FROM pairs GROUP BY ALL
    )
  )
)
SELECT p.a.run_id, p.a.prompt_id, p.a.state_index AS message_index, i.role, i.is_generated,
       p.b.label, p.a.site, p.a.layer, p.cosine,
       -- (v − m)·(w − m) = v·w − v·m − w·m + m·m: inner products are enough
       _clamp((p.dot - v.with_mean - w.with_mean + v.mean_own) / (v.apart * w.apart)) AS centered_cosine,
       p.mae, p.jaccard, coalesce(e.n, 1) AS n
FROM pairs AS p
JOIN points AS v ON v.id = p.a.id
JOIN points AS w ON w.id = p.b.id
LEFT JOIN _references_of(run_id) AS e ON e.run_id = p.a.run_id AND e.label = p.b.label
JOIN snapshots_of(run_id) AS i
  ON i.run_id = p.a.run_id AND i.prompt_id = p.a.prompt_id AND i.message_index = p.a.state_index
WHERE p.a.state = 'snapshot'
ORDER BY p.a.run_id, p.a.prompt_id, message_index, p.b.state_index, p.a.site, p.a.layer;

-- Cosine of the state after each message with each reference, raw or without the mean over the references.
--
-- One of the two cosines of `snapshot_reference`, so that a query can be told which.
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
-- @column n examples that the reference is the mean of
-- @example select label, avg(cosine) from snapshot_cosine('latest', centered := true) group by label
CREATE OR REPLACE MACRO snapshot_cosine(run_id, centered := false) AS TABLE
SELECT r.run_id, r.prompt_id, r.message_index, r.role, r.is_generated, r.label, r.site, r.layer,
       CASE WHEN centered THEN r.centered_cosine ELSE r.cosine END AS cosine, r.n
FROM snapshot_reference(run_id) AS r;
