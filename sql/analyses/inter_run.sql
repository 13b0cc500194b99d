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

-- Initial and final states of every comparable pair of the runs in some files of the lake.
--
-- Whatever concerns one vector (its length, its largest dimensions) is computed once, not once a pair.
-- @param files list of path patterns of the dataset `states`
-- @column run_a id of the older run
-- @column run_b id of the newer run; the other columns are those of `inter_run_all`
-- @example select count(*) from _compare_runs([_files_of('states', 'latest', '/*.parquet')])
CREATE OR REPLACE MACRO _compare_runs(files) AS TABLE
WITH vectors AS MATERIALIZED (
  SELECT row_number() OVER () AS id, r.place, s.prompt_id, s.state, s.site, s.layer,
         s.vector, len(s.vector) AS width, _top_count(len(s.vector), 0.01) AS k,
         r.num_layers, r.run_id
  FROM read_parquet(files, hive_partitioning = true, hive_types = {'run': VARCHAR}) AS s
  JOIN (SELECT run_id, num_layers, row_number() OVER (ORDER BY created_at, run_id) AS place FROM runs) AS r
    ON r.run_id = s.run
  WHERE s.state IN ('initial', 'final')
), quarters AS MATERIALIZED (  -- four dimensions a row: the rows of a pair are what costs
  SELECT * EXCLUDE (vector), _quarter(vector, 0) AS v0, _quarter(vector, 1) AS v1, _quarter(vector, 2) AS v2,
         _quarter(vector, 3) AS v3
  FROM vectors
), scores AS MATERIALIZED (
  SELECT a, b, sum(x0::DOUBLE * y0 + x1::DOUBLE * y1 + x2::DOUBLE * y2 + x3::DOUBLE * y3) AS dot,
         sum(abs(x0::DOUBLE - y0) + abs(x1::DOUBLE - y1) + abs(x2::DOUBLE - y2) + abs(x3::DOUBLE - y3)) AS distance
  FROM (
    SELECT a.id AS a, b.id AS b, unnest(a.v0) AS x0, unnest(a.v1) AS x1, unnest(a.v2) AS x2, unnest(a.v3) AS x3,
           unnest(b.v0) AS y0, unnest(b.v1) AS y1, unnest(b.v2) AS y2, unnest(b.v3) AS y3
    FROM quarters AS a JOIN quarters AS b
      ON a.prompt_id = b.prompt_id AND a.state = b.state AND a.site = b.site AND a.layer = b.layer
     AND a.width = b.width AND a.num_layers = b.num_layers AND a.place < b.place
  )
  GROUP BY a, b
), largest AS (
  SELECT id, bitstring('0', width::INTEGER) AS none, sum(x::DOUBLE * x) AS own,
         max(_magnitude(x, dim), k) AS magnitudes
  FROM (SELECT id, width, k, unnest(vector) AS x, unnest(range(width)) AS dim FROM vectors)
  GROUP BY id, width
), points AS MATERIALIZED (
  SELECT id, any_value(own) AS own, bit_or(set_bit(none, dim::INTEGER, 1)) AS top
  FROM (SELECT id, none, own, _dim_of(unnest(magnitudes)) AS dim FROM largest)
  GROUP BY id
)
SELECT a.run_id AS run_a, b.run_id AS run_b, a.prompt_id, a.state, a.site, a.layer,
       _clamp(scores.dot / nullif(sqrt(pa.own * pb.own), 0)) AS cosine, scores.distance / a.width AS mae,
       _jaccard(bit_count(pa.top & pb.top), a.k) AS jaccard
FROM scores
JOIN vectors AS a ON a.id = scores.a
JOIN vectors AS b ON b.id = scores.b
JOIN points AS pa ON pa.id = scores.a
JOIN points AS pb ON pb.id = scores.b;

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
       c.prompt_id, c.state, c.site, c.layer, c.cosine, c.mae, c.jaccard
FROM _compare_runs([_files_of('states', run_a, '/*.parquet'), _files_of('states', run_b, '/*.parquet')]) AS c
ORDER BY c.prompt_id, c.state DESC, c.site, c.layer;

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
SELECT c.run_a, c.run_b, c.prompt_id, c.state, c.site, c.layer, c.cosine, c.mae, c.jaccard
FROM _compare_runs([_files_of_all('states', '/*.parquet')]) AS c;
