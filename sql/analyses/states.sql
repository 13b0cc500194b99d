-- The last-token states of two kinds of some runs, each with what concerns it alone: its length and its largest
-- dimensions, computed once and not once a pair.
-- @param runs a run id, `latest`, or a list of these
-- @param one_kind initial, final, snapshot, reference or example
-- @param other_kind likewise
-- @column id a number of the state, unique in the answer
-- @column state a struct of id, run_id, prompt_id, state, state_index, label, site, layer and norm
-- @column vector the state's vector
-- @column width its width
-- @column k how many dimensions a top 1% has
-- @column top its k largest dimensions, as a BIT
-- @column num_layers layers of the run's model
-- @column age place of the run among the runs, the oldest first
-- @example select state.site, state.layer, state.norm from _points_of('latest', 'initial', 'final')
CREATE OR REPLACE MACRO _points_of(runs, one_kind, other_kind) AS TABLE
WITH vectors AS MATERIALIZED (
  SELECT row_number() OVER () AS id, s.*, len(s.vector) AS width, _top_count(len(s.vector), 0.01) AS k,
         r.num_layers, r.age
  FROM states_of(runs) AS s
  JOIN (SELECT run_id, num_layers, row_number() OVER (ORDER BY created_at, run_id) AS age FROM runs) AS r
    ON r.run_id = s.run_id
  WHERE s.state IN (one_kind, other_kind)
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
)
SELECT v.id,
       {'id': v.id, 'run_id': v.run_id, 'prompt_id': v.prompt_id, 'state': v.state, 'state_index': v.state_index,
        'label': v.label, 'site': v.site, 'layer': v.layer, 'norm': norm(v.vector)} AS state,
       v.vector, v.width, v.k, t.top, v.num_layers, v.age
FROM vectors AS v JOIN tops AS t ON t.id = v.id;

-- The last-token states of some runs, each against those that it is compared with.
--
-- Differences are added up in float32, products in float64.
-- @param runs a run id, `latest`, or a list of these
-- @param kind intra (a conversation's initial with its final state), reference (snapshots and references with the
--   references of their run) or inter (the initial states of different runs, and the final ones)
-- @column a the first state, a struct of id, run_id, prompt_id, state, state_index, label, site, layer and norm
-- @column b the second state, likewise: in inter that of the newer run
-- @column dot inner product of the two states
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select a.site, a.layer, cosine from _compare_states('latest', 'intra')
CREATE OR REPLACE MACRO _compare_states(runs, kind) AS TABLE
WITH points AS MATERIALIZED (
  FROM _points_of(runs, CASE kind WHEN 'reference' THEN 'snapshot' ELSE 'initial' END,
                  CASE kind WHEN 'reference' THEN 'reference' ELSE 'final' END)
), rows AS (
  SELECT id, state.site, state.layer, width, num_layers, _eights(vector) AS dims,
         CASE kind WHEN 'inter' THEN age ELSE (state.state IN ('final', 'reference'))::BIGINT END AS place,
         CASE kind WHEN 'inter' THEN state.state ELSE state.run_id END AS of,
         CASE kind WHEN 'reference' THEN -1 ELSE state.prompt_id END AS prompt
  FROM points
), scores AS (
  SELECT a, b, sum(_distance_of_eights(x, y)) AS distance, sum(_dot_of_eights(x, y)) AS dot
  FROM (
    SELECT a.id AS a, b.id AS b, unnest(a.dims) AS x, unnest(b.dims) AS y
    FROM rows AS a JOIN rows AS b
      ON a.site = b.site AND a.layer = b.layer AND a.width = b.width AND a.num_layers = b.num_layers
     AND a.of = b.of AND a.prompt = b.prompt
     AND CASE kind WHEN 'reference' THEN b.place = 1 ELSE a.place < b.place END
  )
  GROUP BY a, b
)
SELECT a.state AS a, b.state AS b, s.dot, _clamp(s.dot / nullif(a.state.norm * b.state.norm, 0)) AS cosine,
       s.distance / a.width AS mae, _jaccard(bit_count(a.top & b.top), a.k) AS jaccard
FROM scores AS s JOIN points AS a ON a.id = s.a JOIN points AS b ON b.id = s.b;
