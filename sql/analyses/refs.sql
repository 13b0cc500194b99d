-- The vectors of any states of any runs, each named in one line of text.
--
-- A ref says which state of which run:
--
-- - `RUN`: how its prompt ended, the same as `RUN:0:initial`; `RUN:2` that of conversation 2
-- - `RUN:0:final`: how the reply ended; `RUN:0:snapshot:3`: after message 3
-- - `RUN:0:token:12`: the token at position 12, where the activations were kept
-- - `RUN:reference:LABEL`, `RUN:example:4`: a reference, an example of one by its place in the scenario
-- - `RUN:row:ID`: the last token of a dataset's row; `RUN:row@name:ID` the position that the selector `name` keeps
--   (of several the last), `RUN:row@mean:ID` the mean over its tokens
--
-- What is not there has no rows.
-- @param refs a list of refs
-- @column place 0-based place of the ref in the list
-- @column ref the ref
-- @column run_id id of its run
-- @column prompt_id 0-based conversation or row of a dataset; NULL for references and examples
-- @column state initial, final, snapshot, token, reference, example or row
-- @column position 0-based place of the token in its own sequence; NULL where that is not known, and for means
-- @column num_layers decoder blocks of the model
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column vector the state
-- @example select ref, layer, norm(vector) from states_by_ref(['latest', 'latest:0:final']) where site = 'hidden_out'
CREATE OR REPLACE MACRO states_by_ref(refs) AS TABLE
WITH asked AS MATERIALIZED (
  SELECT a.*, m.num_layers FROM _refs_of(refs) AS a JOIN runs AS m ON m.run_id = a.run_id
), rows_at AS MATERIALIZED (  -- where the vectors stand that are not among the states
  SELECT a.place, a.run_id, a.prompt AS prompt_id, a.number AS position FROM asked AS a WHERE a.kind = 'token'
  UNION ALL
  SELECT a.place, a.run_id, p.prompt_id, max(q.position)
  FROM asked AS a
  JOIN prompts AS p ON p.run_id = a.run_id AND p.row_id = a.row_id
  JOIN positions AS q ON q.run_id = a.run_id AND q.prompt_id = p.prompt_id AND q.selector = a.selector
  WHERE a.kind = 'row'
  GROUP BY a.place, a.run_id, p.prompt_id
), vectors AS (
  SELECT a.place, s.prompt_id, t.position, s.site, s.layer, s.vector
  FROM asked AS a
  JOIN states_of([_ref_run(each_ref) FOR each_ref IN refs]) AS s
    ON s.run_id = a.run_id AND s.state = a.kind
   AND CASE a.kind WHEN 'reference' THEN s.label = a.label WHEN 'example' THEN s.state_index = a.number
                   WHEN 'snapshot' THEN s.prompt_id = a.prompt AND s.state_index = a.number
                   ELSE s.prompt_id = a.prompt END
  LEFT JOIN state_tokens AS t
    ON t.run_id = s.run_id AND t.prompt_id IS NOT DISTINCT FROM s.prompt_id AND t.state = s.state
   AND t.state_index = s.state_index
  UNION ALL
  SELECT a.place, s.prompt_id, NULL, s.site, s.layer, s.vector
  FROM asked AS a
  JOIN prompts AS p ON p.run_id = a.run_id AND p.row_id = a.row_id
  JOIN _means_of([_ref_run(each_ref) FOR each_ref IN refs], _refs_like(refs, '^row@mean:')) AS s
    ON s.run_id = a.run_id AND s.prompt_id = p.prompt_id
  WHERE a.selector = 'mean'
  UNION ALL
  SELECT v.place, v.prompt_id, v.position, v.of.site, v.layer, v.of.vector
  FROM (
    SELECT w.place, w.prompt_id, w.position, t.layer,
           unnest([{'site': 'hidden_in', 'vector': t.hidden_in}, {'site': 'hidden_out', 'vector': t.hidden_out},
                   {'site': 'attn_out', 'vector': t.attn_out},
                    {'site': 'mlp_down_out', 'vector': t.mlp_down_out}]) AS of
    FROM rows_at AS w
    JOIN _rows_by_layer(_files_if(_refs_like(refs, '^(row|[0-9]+:token)'), 'activations',
                                  [_ref_run(each_ref) FOR each_ref IN refs], '/steps=*/layer=*/*.parquet')) AS t
      ON t.run = w.run_id AND t.prompt_id = w.prompt_id AND t.position = w.position
  ) AS v
  WHERE v.of.vector IS NOT NULL
)
SELECT a.place, a.ref, a.run_id, v.prompt_id, a.kind AS state, v.position, a.num_layers, v.site, v.layer, v.vector
FROM vectors AS v JOIN asked AS a ON a.place = v.place;

-- Every two of some states, per site and layer, in the order in which they are named.
--
-- Two states of different width, or of models with other layers, do not compare. The cost grows with the square of
-- the states: name a site, and a layer, where that is enough.
-- @param refs a list of refs, as in `states_by_ref`
-- @param site hidden_in, hidden_out, attn_out or mlp_down_out; NULL for all; give it by name
-- @param layer 0-based decoder block; NULL for all; give it by name
-- @column place_a 0-based place of the first ref in the list
-- @column place_b likewise of the second, which is later
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference
-- @column jaccard overlap of the largest 1% of the dimensions
-- @column std population standard deviation over the dimensions of the first minus the second
-- @example select layer, cosine, std from pairs_by_ref(['latest', 'latest:0:final'], site := 'hidden_out')
CREATE OR REPLACE MACRO pairs_by_ref(refs, site := NULL, layer := NULL) AS TABLE
WITH points AS MATERIALIZED (
  SELECT row_number() OVER () AS id, s.place, s.num_layers, s.site AS at_site, s.layer AS at_layer, s.vector,
         len(s.vector) AS width, norm(s.vector) AS norm, top_dims(s.vector, _top_count(len(s.vector), 0.01)) AS top
  FROM states_by_ref(refs) AS s
  WHERE (site IS NULL OR s.site = site) AND (layer IS NULL OR s.layer = layer)
), rows AS MATERIALIZED (
  SELECT id, place, num_layers, at_site, at_layer, width, _eights(vector) AS dims FROM points
), scores AS (
  SELECT a, b, sum(_distance_of_eights(u, v)) AS distance, sum(_dot_of_eights(u, v)) AS dot,
         sum(_difference_of_eights(u, v)) AS difference, sum(_square_of_eights(u, v)) AS square
  FROM (  -- the empty half: see compare_states
    SELECT a.id AS a, b.id AS b, unnest(a.dims) AS u, unnest(b.dims) AS v
    FROM rows AS a JOIN rows AS b
      ON a.at_site = b.at_site AND a.at_layer = b.at_layer AND a.width = b.width AND a.num_layers = b.num_layers
     AND a.place < b.place
    UNION ALL SELECT NULL, NULL, NULL, NULL WHERE false)
  GROUP BY a, b
)
SELECT a.place AS place_a, b.place AS place_b, a.at_site AS site, a.at_layer AS layer,
       _clamp(s.dot / nullif(a.norm * b.norm, 0)) AS cosine, s.distance / a.width AS mae,
       _jaccard(_shared(a.top, b.top), len(a.top)) AS jaccard,
       sqrt(greatest(0, s.square / a.width - (s.difference / a.width) ** 2)) AS std
FROM scores AS s JOIN points AS a ON a.id = s.a JOIN points AS b ON b.id = s.b
ORDER BY ALL;

-- Each of some states against their centroid, the mean of all that are as wide, per site and layer.
-- @param refs a list of refs, as in `states_by_ref`
-- @param site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column place 0-based place of the ref in the list
-- @column layer 0-based decoder block
-- @column n states in the group, this one included
-- @column cosine cosine of the state and the centroid; NULL where one is all zeros
-- @column distance Euclidean distance of the two
-- @column relative_distance the same over the length of the centroid
-- @example select place, avg(cosine) from members_by_ref(['latest', 'latest:0:final'], 'hidden_out') group by place
CREATE OR REPLACE MACRO members_by_ref(refs, site) AS TABLE
WITH members AS MATERIALIZED (
  SELECT s.place, s.num_layers, s.layer, len(s.vector) AS width, s.vector::DOUBLE[] AS vector
  FROM states_by_ref(refs) AS s WHERE s.site = site
), products AS (
  SELECT a.place, a.num_layers, a.layer, a.width, a.place = b.place AS is_own,
         list_inner_product(a.vector, b.vector) AS product
  FROM members AS a JOIN members AS b
    ON b.layer = a.layer AND b.width = a.width AND b.num_layers = a.num_layers
), sums AS (  -- with the mean m of the n members: x·m, x·x and m·m
  SELECT p.place, p.num_layers, p.layer, p.width, count(*) AS n, avg(product) AS with_mean,
         max(product) FILTER (is_own) AS own
  FROM products AS p GROUP BY p.place, p.num_layers, p.layer, p.width
), centred AS (
  SELECT *, avg(with_mean) OVER (PARTITION BY s.num_layers, s.layer, s.width) AS mean_own FROM sums AS s
), apart AS (
  -- where only rounding is left of the difference, there is none
  SELECT *, with_mean / nullif(sqrt(own * mean_own), 0) AS x,
         CASE WHEN own - 2 * with_mean + mean_own > 1e-13 * own THEN sqrt(own - 2 * with_mean + mean_own)
              ELSE 0 END AS far
  FROM centred
)
SELECT a.place, a.layer, a.n, _clamp(a.x) AS cosine, a.far AS distance,
       a.far / nullif(sqrt(a.mean_own), 0) AS relative_distance
FROM apart AS a
ORDER BY a.place, a.layer;

-- How alike some states are, per site and layer.
--
-- States of different width, or of models with other layers, make groups of their own.
-- @param refs a list of refs, as in `states_by_ref`
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column width width of the vectors
-- @column n states in the group
-- @column pair_cosine mean cosine over the pairs; NULL with one state
-- @column spread one minus that: 0 where all point the same way
-- @column effective_rank number of directions in which the states differ: (Σλ)² / Σλ² of the eigenvalues λ of their
--   covariance; 1 where all lie on a line, at most n − 1; NULL where they do not differ
-- @example select layer, spread from spread_by_ref(['latest', 'latest:0:final']) where site = 'hidden_out'
CREATE OR REPLACE MACRO spread_by_ref(refs) AS TABLE
WITH members AS MATERIALIZED (
  SELECT s.place, s.num_layers, s.site, s.layer, len(s.vector) AS width, s.vector::DOUBLE[] AS vector
  FROM states_by_ref(refs) AS s
), products AS MATERIALIZED (
  SELECT a.place AS a, b.place AS b, a.num_layers, a.site, a.layer, a.width,
         list_inner_product(a.vector, b.vector) AS product
  FROM members AS a JOIN members AS b
    ON b.site = a.site AND b.layer = a.layer AND b.width = a.width AND b.num_layers = a.num_layers
), owns AS (
  SELECT p.a AS place, p.site, p.layer, p.width, p.product AS own FROM products AS p WHERE p.a = p.b
), scored AS (
  SELECT p.site, p.layer, p.width, p.num_layers, p.a, p.b, x.own,
         p.product / nullif(sqrt(x.own * y.own), 0) AS cosine,
         p.product - avg(p.product) OVER (PARTITION BY p.num_layers, p.site, p.layer, p.width, p.a)
           - avg(p.product) OVER (PARTITION BY p.num_layers, p.site, p.layer, p.width, p.b)
           + avg(p.product) OVER (PARTITION BY p.num_layers, p.site, p.layer, p.width) AS centred
  FROM products AS p
  JOIN owns AS x ON x.place = p.a AND x.site = p.site AND x.layer = p.layer
  JOIN owns AS y ON y.place = p.b AND y.site = p.site AND y.layer = p.layer
), totals AS (
  SELECT s.site, s.layer, s.width, s.num_layers, count(*) FILTER (a = b) AS n,
         avg(cosine) FILTER (a <> b) AS pair_cosine,
         sum(centred) FILTER (a = b) AS trace, sum(centred ** 2) AS square, sum(own) FILTER (a = b) AS own
  FROM scored AS s GROUP BY s.site, s.layer, s.width, s.num_layers
)
SELECT t.site, t.layer, t.width, t.n, _clamp(t.pair_cosine) AS pair_cosine, 1 - _clamp(t.pair_cosine) AS spread,
       CASE WHEN t.trace > 1e-13 * t.own THEN t.trace ** 2 / nullif(t.square, 0) END AS effective_rank
FROM totals AS t
ORDER BY t.site, t.layer, t.width;

-- How the residual stream settles from layer to layer, at any states; what `convergence` tells of a run's.
-- @param refs a list of refs, as in `states_by_ref`
-- @column place 0-based place of the ref in the list
-- @column layer 0-based decoder block
-- @column cosine_adjacent cosine of the stream that enters the layer and the stream that leaves it
-- @column relative_step length of what the layer adds, relative to the stream that enters it
-- @column cosine_last cosine of the stream that leaves this layer and the one that leaves the last captured layer
-- @example select place, layer, cosine_last from convergence_by_ref(['latest', 'latest:0:final'])
CREATE OR REPLACE MACRO convergence_by_ref(refs) AS TABLE
WITH streams AS MATERIALIZED (
  SELECT s.place, s.layer, max(s.vector) FILTER (s.site = 'hidden_in') AS entering,
         max(s.vector) FILTER (s.site = 'hidden_out') AS leaving
  FROM states_by_ref(refs) AS s
  WHERE s.site IN ('hidden_in', 'hidden_out')
  GROUP BY s.place, s.layer
)
SELECT s.place, s.layer, cosine(s.entering, s.leaving) AS cosine_adjacent,
       euclidean(s.entering, s.leaving) / nullif(norm(s.entering), 0) AS relative_step,
       cosine(s.leaving, last_value(s.leaving) OVER (
         PARTITION BY s.place ORDER BY s.layer ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING))
         AS cosine_last
FROM streams AS s
ORDER BY s.place, s.layer;
