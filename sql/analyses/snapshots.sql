-- The snapshots of one run with what is known about them.
-- @param run_id a run id or `latest`
-- @column run_id id of the run; the other columns are those of the table `snapshots`
-- @example select message_index, role from snapshots_of('latest')
CREATE OR REPLACE MACRO snapshots_of(run_id) AS TABLE
SELECT s.* FROM snapshots AS s JOIN (SELECT resolve_run(run_id) AS asked) ON s.run_id = asked;

-- The state after each message against each reference, per site and layer.
--
-- Reads the run's states only. No rows where the scenario has no `reference_states` or no `capture.hidden_states`.
-- The snapshot after the generated reply is here, marked `is_generated`; averages leave it out.
-- @param run_id a run id or `latest`
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
WITH vectors AS MATERIALIZED (
  SELECT row_number() OVER () AS id, s.prompt_id, s.state, s.state_index, s.label, s.site, s.layer,
         s.vector::DOUBLE[] AS vector, len(s.vector) AS width
  FROM states_of(run_id) AS s
  WHERE s.state IN ('snapshot', 'reference')
), scores AS MATERIALIZED (
  SELECT a, b, sum(x * y) AS dot, sum(abs(x - y)) AS distance
  FROM (
    SELECT a.id AS a, b.id AS b, unnest(a.vector) AS x, unnest(b.vector) AS y
    FROM vectors AS a JOIN vectors AS b ON a.site = b.site AND a.layer = b.layer
    WHERE a.state = 'snapshot' AND b.state = 'reference'
  )
  GROUP BY a, b
), largest AS (
  SELECT id, bitstring('0', width::INTEGER) AS none, sum(x * x) AS own,
         max(_magnitude(x, dim), _top_count(width, 0.01)) AS magnitudes
  FROM (SELECT id, width, unnest(vector) AS x, unnest(range(width)) AS dim FROM vectors)
  GROUP BY id, width
), points AS MATERIALIZED (
  SELECT id, any_value(own) AS own, bit_or(set_bit(none, dim::INTEGER, 1)) AS top
  FROM (SELECT id, none, own, _dim_of(unnest(magnitudes)) AS dim FROM largest)
  GROUP BY id
)
SELECT resolve_run(run_id) AS run_id, a.prompt_id, a.state_index AS message_index, i.role, i.is_generated,
       b.label, a.site, a.layer,
       _clamp(scores.dot / nullif(sqrt(pa.own * pb.own), 0)) AS cosine, scores.distance / a.width AS mae,
       _jaccard(bit_count(pa.top & pb.top), _top_count(a.width, 0.01)) AS jaccard
FROM scores
JOIN vectors AS a ON a.id = scores.a
JOIN vectors AS b ON b.id = scores.b
JOIN points AS pa ON pa.id = scores.a
JOIN points AS pb ON pb.id = scores.b
JOIN snapshots_of(run_id) AS i ON i.prompt_id = a.prompt_id AND i.message_index = a.state_index
ORDER BY a.prompt_id, message_index, b.state_index, a.site, a.layer;

-- Cosine of the state after each message with each reference, raw or without the mean over the references.
--
-- Last-token states share a large common part, so raw cosines all lie close together; `centered := true` takes
-- the mean over the run's references off both sides first. One reference alone has nothing left then: NULL.
-- @param run_id a run id or `latest`
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
WITH means AS (
  SELECT site, layer, list(mean ORDER BY dim) AS mean
  FROM (
    SELECT site, layer, dim, CASE WHEN centered THEN avg(x) ELSE 0 END AS mean
    FROM (SELECT s.site, s.layer, unnest(s.vector) AS x, unnest(range(len(s.vector))) AS dim
          FROM states_of(run_id) AS s WHERE s.state = 'reference')
    GROUP BY site, layer, dim
  )
  GROUP BY site, layer
), parts AS MATERIALIZED (
  -- (v − m)·(w − m) = v·w − v·m − w·m + m·m: inner products are enough
  SELECT s.prompt_id, s.state, s.state_index, s.label, s.site, s.layer, s.vector::DOUBLE[] AS vector,
         dot(s.vector, s.vector) AS own, dot(s.vector, m.mean) AS with_mean, dot(m.mean, m.mean) AS mean_own
  FROM states_of(run_id) AS s JOIN means AS m ON m.site = s.site AND m.layer = s.layer
  WHERE s.state IN ('snapshot', 'reference')
), cosines AS (
  SELECT a.prompt_id, a.state_index AS message_index, b.label, b.state_index AS ref_index, a.site, a.layer,
         (list_inner_product(a.vector, b.vector) - a.with_mean - b.with_mean + a.mean_own)
         / nullif(sqrt(greatest(a.own - 2 * a.with_mean + a.mean_own, 0)
                       * greatest(b.own - 2 * b.with_mean + b.mean_own, 0)), 0) AS x
  FROM parts AS a JOIN parts AS b ON a.site = b.site AND a.layer = b.layer
  WHERE a.state = 'snapshot' AND b.state = 'reference'
)
SELECT resolve_run(run_id) AS run_id, c.prompt_id, c.message_index, i.role, i.is_generated,
       c.label, c.site, c.layer, _clamp(x) AS cosine
FROM cosines AS c
JOIN snapshots_of(run_id) AS i ON i.prompt_id = c.prompt_id AND i.message_index = c.message_index
ORDER BY c.prompt_id, c.message_index, c.ref_index, c.site, c.layer;
