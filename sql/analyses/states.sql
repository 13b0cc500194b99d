-- The last-token states of some runs, each against those that it is compared with.
--
-- Whatever concerns one vector (its length, its largest dimensions) is computed once, not once a pair. Differences
-- are added up in float32, products in float64.
-- @param runs a run id, `latest`, or a list of these
-- @param kind intra (a conversation's initial with its final state), reference (snapshots and references with the
--   references of their run), turns (each snapshot with the next one), snapshot (both of these), inter (the initial
--   states of different runs, and the final ones) or messages (their snapshots)
-- @column a the first state, a struct of id, run_id, prompt_id, state, state_index, label, site, layer and norm
-- @column b the second state, likewise: in inter that of the newer run
-- @column dot inner product of the two states
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select a.site, a.layer, cosine from _compare_states('latest', 'intra')
CREATE OR REPLACE MACRO _compare_states(runs, kind) AS TABLE
WITH vectors AS MATERIALIZED (
  SELECT row_number() OVER () AS id, s.*, len(s.vector) AS width, _top_count(len(s.vector), 0.01) AS k, r.num_layers,
         CASE WHEN kind IN ('inter', 'messages') THEN r.age
              ELSE (s.state IN ('final', 'reference'))::BIGINT END AS place
  FROM states_of(runs) AS s
  JOIN (SELECT run_id, num_layers, row_number() OVER (ORDER BY created_at, run_id) AS age FROM runs) AS r
    ON r.run_id = s.run_id
  WHERE CASE WHEN kind IN ('reference', 'snapshot') THEN s.state IN ('snapshot', 'reference')
             WHEN kind IN ('turns', 'messages') THEN s.state = 'snapshot' ELSE s.state IN ('initial', 'final') END
), bounds AS (  -- the k largest of some dimensions tell of most others that they are not among the k largest of all
  SELECT id, _finite(list_min(max(abs(x), k))) AS bound
  FROM (SELECT id, k, unnest(list_resize(vector, ceil(sqrt(width * k))::BIGINT)) AS x FROM vectors)
  GROUP BY id
), largest AS (
  SELECT id, width, max(_magnitude(x, dim), k) AS magnitudes
  FROM (SELECT id, width, k, bound, unnest(vector) AS x, unnest(range(width)) AS dim
        FROM vectors JOIN bounds USING (id))
  WHERE NOT abs(x) < bound
  GROUP BY id, width
), tops AS (
  SELECT id, bit_or(set_bit(bitstring('0', width::INTEGER), dim::INTEGER, 1)) AS top
  FROM (SELECT id, width, _dim_of(unnest(magnitudes)) AS dim FROM largest)
  GROUP BY id
), rows AS (
  SELECT id, site, layer, width, num_layers, place, state, state_index, _eights(vector) AS dims,
         CASE kind WHEN 'inter' THEN state WHEN 'messages' THEN state_index::VARCHAR ELSE run_id END AS of,
         CASE WHEN kind IN ('reference', 'snapshot') THEN -1 ELSE prompt_id END AS prompt, prompt_id
  FROM vectors
), scores AS (
  SELECT a, b,
         sum(abs(x[1] - y[1]) + abs(x[2] - y[2]) + abs(x[3] - y[3]) + abs(x[4] - y[4])
             + abs(x[5] - y[5]) + abs(x[6] - y[6]) + abs(x[7] - y[7]) + abs(x[8] - y[8])) AS distance,
         sum(x[1]::DOUBLE * y[1] + x[2]::DOUBLE * y[2] + x[3]::DOUBLE * y[3] + x[4]::DOUBLE * y[4]
             + x[5]::DOUBLE * y[5] + x[6]::DOUBLE * y[6] + x[7]::DOUBLE * y[7] + x[8]::DOUBLE * y[8]) AS dot
  FROM (
    SELECT a.id AS a, b.id AS b, unnest(a.dims) AS x, unnest(b.dims) AS y
    FROM rows AS a JOIN rows AS b
      ON a.site = b.site AND a.layer = b.layer AND a.width = b.width AND a.num_layers = b.num_layers
     AND a.of = b.of AND a.prompt = b.prompt
     AND CASE WHEN kind IN ('reference', 'snapshot') THEN b.place = 1 ELSE a.place < b.place END
    WHERE kind <> 'turns'
    UNION ALL
    SELECT a.id, b.id, unnest(a.dims), unnest(b.dims)
    FROM rows AS a JOIN rows AS b
      ON a.site = b.site AND a.layer = b.layer AND a.of = b.of AND a.prompt_id = b.prompt_id
     AND a.state_index + 1 = b.state_index
    WHERE kind IN ('turns', 'snapshot') AND a.state = 'snapshot' AND b.state = 'snapshot'
  )
  GROUP BY a, b
), points AS (
  SELECT v.id, v.width, v.k, tops.top,
         {'id': v.id, 'run_id': run_id, 'prompt_id': prompt_id, 'state': state, 'state_index': state_index,
          'label': label, 'site': site, 'layer': layer, 'norm': norm(v.vector)} AS state
  FROM vectors AS v JOIN tops ON tops.id = v.id
)
SELECT a.state AS a, b.state AS b, s.dot, _clamp(s.dot / nullif(a.state.norm * b.state.norm, 0)) AS cosine,
       s.distance / a.width AS mae, _jaccard(bit_count(a.top & b.top), a.k) AS jaccard
FROM scores AS s JOIN points AS a ON a.id = s.a JOIN points AS b ON b.id = s.b;
