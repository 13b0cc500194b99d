-- The snapshots of one run with what is known about them.
-- @param run_id a run id or `latest`
-- @column run_id id of the run; the other columns are those of the table `snapshots`
-- @example select message_index, role from snapshots_of('latest')
CREATE OR REPLACE MACRO snapshots_of(run_id) AS TABLE
SELECT s.* FROM snapshots AS s JOIN (SELECT resolve_run(run_id) AS asked) ON s.run_id = asked;

-- The state after each message against each reference, per site and layer.
--
-- Reads the run's states only. No rows where the scenario asked for no snapshots or no references
-- (`capture.snapshots`, `reference_states`). The snapshot after the generated reply is here, marked
-- `is_generated`; averages leave it out.
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
  SELECT row_number() OVER () AS id, s.prompt_id, s.state, s.state_index, s.label, s.site, s.layer, s.vector,
         s.vector::DOUBLE[] AS wide, norm(s.vector) AS norm, _top_count(len(s.vector), 0.01) AS k
  FROM states_of(run_id) AS s
  WHERE s.state IN ('snapshot', 'reference')
), pairs AS MATERIALIZED (
  SELECT row_number() OVER () AS pair, a.id AS a, b.id AS b,
         _clamp(list_inner_product(a.wide, b.wide) / nullif(a.norm * b.norm, 0)) AS cosine,
         a.vector AS va, b.vector AS vb
  FROM vectors AS a JOIN vectors AS b ON a.site = b.site AND a.layer = b.layer
  WHERE a.state = 'snapshot' AND b.state = 'reference'
), distances AS (
  SELECT pair, avg(abs(x::DOUBLE - y)) AS mae
  FROM (SELECT pair, unnest(va) AS x, unnest(vb) AS y FROM pairs)
  GROUP BY pair
), tops AS MATERIALIZED (
  SELECT id, unnest(max_by(dim, _magnitude(x, dim), k)) AS dim
  FROM (SELECT id, k, unnest(vector) AS x, unnest(range(len(vector))) AS dim FROM vectors)
  GROUP BY id
), shared AS (
  SELECT a, b, count(*) AS n
  FROM pairs JOIN tops AS ta ON ta.id = a JOIN tops AS tb ON tb.id = b AND tb.dim = ta.dim
  GROUP BY a, b
)
SELECT resolve_run(run_id) AS run_id, a.prompt_id, a.state_index AS message_index, i.role, i.is_generated,
       b.label, a.site, a.layer, pairs.cosine, mae, _jaccard(coalesce(n, 0), a.k) AS jaccard
FROM pairs
JOIN distances USING (pair)
JOIN vectors AS a ON a.id = pairs.a
JOIN vectors AS b ON b.id = pairs.b
LEFT JOIN shared ON shared.a = pairs.a AND shared.b = pairs.b
JOIN snapshots_of(run_id) AS i ON i.prompt_id = a.prompt_id AND i.message_index = a.state_index
ORDER BY a.prompt_id, message_index, b.state_index, a.site, a.layer;
