-- The last-token states that a group is made of, for `group_states` and those beside it.
-- @param runs a run id, `latest`, or a list of these
-- @param kind initial, final, snapshot, reference or example
-- @param one_index a state_index, or NULL for all
-- @param one_label a label, or NULL for all
-- @param one_prompt a 0-based conversation, or NULL for all
-- @column id a number of the state, unique in the answer
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references and examples
-- @column state_index as in the view `states`
-- @column label label of a reference or example, else NULL
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column width width of the vector
-- @column vector the state
-- @example select run_id, state_index from _group_of('latest', 'snapshot', NULL, NULL, 0) where layer = 0
CREATE OR REPLACE MACRO _group_of(runs, kind, one_index, one_label, one_prompt) AS TABLE
SELECT row_number() OVER () AS id, s.run_id, s.prompt_id, s.state_index, s.label, s.site, s.layer,
       len(s.vector) AS width, s.vector::DOUBLE[] AS vector
FROM states_of(runs) AS s
WHERE s.state = kind AND (one_index IS NULL OR s.state_index = one_index)
  AND (one_label IS NULL OR s.label = one_label) AND (one_prompt IS NULL OR s.prompt_id = one_prompt);

-- Every two states of a group, per site and layer: a square matrix in long form.
--
-- The group is chosen as in `group_states`. The cost grows with the square of its states.
-- @param runs a run id, `latest`, or a list of these
-- @param state initial, final, snapshot, reference or example
-- @param index only those with this state_index: of snapshots the message that they have seen; give it by name
-- @param label only those with this label; give it by name
-- @param prompt only those of this conversation, by its 0-based number; give it by name
-- @column run_a id of the first state's run
-- @column prompt_a 0-based conversation within it; NULL for references and examples
-- @column index_a its state_index, as in the view `states`
-- @column label_a its label, of a reference or example
-- @column run_b id of the second state's run
-- @column prompt_b 0-based conversation within it
-- @column index_b its state_index
-- @column label_b its label
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column n states in the group
-- @column cosine cosine of the two; NULL where one is all zeros
-- @column centered_cosine cosine after the mean over the group was taken off both; NULL where nothing is left of one
-- @column distance Euclidean distance of the two
-- @example
-- pivot (from state_matrix('latest', 'reference') where site = 'hidden_out' and layer = 1)
-- on label_b using first(round(cosine, 3)) group by label_a
CREATE OR REPLACE MACRO state_matrix(runs, state, index := NULL, label := NULL, prompt := NULL) AS TABLE
WITH members AS MATERIALIZED (
  SELECT g.* FROM _group_of(runs, state, index, label, prompt) AS g
), products AS (
  SELECT a.id AS a, b.id AS b, a.site, a.layer, a.width, list_inner_product(a.vector, b.vector) AS product
  FROM members AS a JOIN members AS b ON b.site = a.site AND b.layer = a.layer AND b.width = a.width
), sums AS MATERIALIZED (  -- with the mean m of the n members: x·m, and m·m
  SELECT *, avg(product) OVER (PARTITION BY g.site, g.layer, g.width, a) AS a_mean,
         avg(product) OVER (PARTITION BY g.site, g.layer, g.width, b) AS b_mean,
         avg(product) OVER (PARTITION BY g.site, g.layer, g.width) AS mean_own
  FROM products AS g
), owns AS MATERIALIZED (
  SELECT a AS id, product AS own,
         CASE WHEN product - 2 * a_mean + mean_own > 1e-13 * product OR isnan(product)
              THEN sqrt(product - 2 * a_mean + mean_own) END AS apart,
         count(*) OVER (PARTITION BY s.site, s.layer, s.width) AS n
  FROM sums AS s WHERE a = b
)
SELECT x.run_id AS run_a, x.prompt_id AS prompt_a, x.state_index AS index_a, x.label AS label_a,
       y.run_id AS run_b, y.prompt_id AS prompt_b, y.state_index AS index_b, y.label AS label_b,
       s.site, s.layer, p.n, _clamp(s.product / nullif(sqrt(p.own * q.own), 0)) AS cosine,
       _clamp((s.product - s.a_mean - s.b_mean + s.mean_own) / (p.apart * q.apart)) AS centered_cosine,
       CASE WHEN s.a = s.b THEN 0 ELSE sqrt(greatest(0, p.own + q.own - 2 * s.product)) END AS distance
FROM sums AS s
JOIN owns AS p ON p.id = s.a JOIN owns AS q ON q.id = s.b
JOIN members AS x ON x.id = s.a JOIN members AS y ON y.id = s.b
ORDER BY s.site, s.layer, x.run_id, x.prompt_id, x.state_index, x.label,
         y.run_id, y.prompt_id, y.state_index, y.label;

-- Each state of a group against the centre of the group, per site and layer.
--
-- The group is chosen as in `group_states`.
-- @param runs a run id, `latest`, or a list of these
-- @param state initial, final, snapshot, reference or example
-- @param index only those with this state_index: of snapshots the message that they have seen; give it by name
-- @param label only those with this label; give it by name
-- @param prompt only those of this conversation, by its 0-based number; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references and examples
-- @column state_index as in the view `states`
-- @column label label of a reference or example, else NULL
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column n states in the group, this one included
-- @column cosine cosine of the state and the centroid, the mean of the group; NULL where one is all zeros
-- @column distance Euclidean distance of the two
-- @column relative_distance the same over the length of the centroid
-- @example
-- select run_id, avg(cosine) from group_members(['one_run', 'latest'], 'final')
-- where site = 'hidden_out' group by run_id
CREATE OR REPLACE MACRO group_members(runs, state, index := NULL, label := NULL, prompt := NULL) AS TABLE
WITH members AS MATERIALIZED (
  SELECT g.* FROM _group_of(runs, state, index, label, prompt) AS g
), centroids AS MATERIALIZED (
  SELECT d.site, d.layer, d.width, list(mean ORDER BY dim) AS centroid, any_value(n) AS n
  FROM (
    SELECT m.site, m.layer, m.width, dim, avg(x) AS mean, count(*) AS n
    FROM (SELECT g.site, g.layer, g.width, unnest(g.vector) AS x, unnest(range(g.width)) AS dim
          FROM members AS g) AS m
    GROUP BY m.site, m.layer, m.width, dim
  ) AS d
  GROUP BY d.site, d.layer, d.width
)
SELECT m.run_id, m.prompt_id, m.state_index, m.label, m.site, m.layer, c.n,
       cosine(m.vector, c.centroid) AS cosine, euclidean(m.vector, c.centroid) AS distance,
       euclidean(m.vector, c.centroid) / nullif(norm(c.centroid), 0) AS relative_distance
FROM members AS m JOIN centroids AS c ON c.site = m.site AND c.layer = m.layer AND c.width = m.width
ORDER BY m.site, m.layer, m.run_id, m.prompt_id, m.state_index, m.label;

-- How alike the states of a group are, per site and layer: all of one kind in some runs, or those that are named.
--
-- `group_states(['a', 'b', 'c'], 'final')` is how the replies of three runs ended, `group_states('latest', 'initial')`
-- all conversations of a run, `group_states('latest', 'snapshot', prompt := 0)` the messages of one conversation,
-- `group_states(['a', 'b', 'c'], 'snapshot', index := 3)` one message in three runs, `group_states('latest',
-- 'example', label := 'joy')` the examples of a label. `group_members` has each state, `state_matrix` every two.
-- States of different width make groups of their own. The cost grows with the square of the states.
-- @param runs a run id, `latest`, or a list of these
-- @param state initial, final, snapshot, reference or example
-- @param index only those with this state_index: of snapshots the message that they have seen; give it by name
-- @param label only those with this label; give it by name
-- @param prompt only those of this conversation, by its 0-based number; give it by name
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column width width of the vectors
-- @column n states in the group
-- @column cosine_mean mean cosine of a state and the centroid, the mean of the group
-- @column cosine_min the least
-- @column pair_cosine mean cosine over the pairs of states; NULL with one state
-- @column spread root mean square distance of the states from the centroid
-- @column relative_spread the same over the length of the centroid
-- @column effective_rank number of directions in which the states differ: (Σλ)² / Σλ² of the eigenvalues λ of their
--   covariance; 1 where all lie on a line, at most n − 1; NULL where they do not differ
-- @example select layer, n, cosine_mean, relative_spread, effective_rank from group_states('latest', 'snapshot')
CREATE OR REPLACE MACRO group_states(runs, state, index := NULL, label := NULL, prompt := NULL) AS TABLE
WITH members AS MATERIALIZED (
  SELECT g.* FROM _group_of(runs, state, index, label, prompt) AS g
), products AS (
  SELECT a.id AS a, b.id AS b, a.site, a.layer, a.width, list_inner_product(a.vector, b.vector) AS product,
         sqrt(list_inner_product(a.vector, a.vector) * list_inner_product(b.vector, b.vector)) AS norms
  FROM members AS a JOIN members AS b ON b.site = a.site AND b.layer = a.layer AND b.width = a.width
), sums AS (
  SELECT *, avg(product) OVER (PARTITION BY g.site, g.layer, g.width, a) AS a_mean,
         avg(product) OVER (PARTITION BY g.site, g.layer, g.width, b) AS b_mean,
         avg(product) OVER (PARTITION BY g.site, g.layer, g.width) AS mean_own
  FROM products AS g
), scored AS (
  SELECT s.site, s.layer, s.width, a, b, mean_own, product - a_mean - b_mean + mean_own AS centred,
         CASE WHEN a <> b THEN product / nullif(norms, 0) END AS pair_cosine,
         CASE WHEN a = b THEN a_mean / nullif(sqrt(product * mean_own), 0) END AS cosine,
         CASE WHEN a = b THEN product END AS own
  FROM sums AS s
), totals AS (
  SELECT s.site, s.layer, s.width, count(*) FILTER (a = b) AS n,
         avg(cosine) AS cosine_mean, min(cosine) AS cosine_min,
         avg(pair_cosine) AS pair_cosine, sum(centred) FILTER (a = b) AS trace, sum(centred ** 2) AS square,
         sum(own) AS own, any_value(mean_own) AS mean_own
  FROM scored AS s GROUP BY s.site, s.layer, s.width
)
SELECT t.site, t.layer, t.width, t.n, _clamp(t.cosine_mean) AS cosine_mean, _clamp(t.cosine_min) AS cosine_min,
       _clamp(t.pair_cosine) AS pair_cosine, sqrt(greatest(0, t.trace) / t.n) AS spread,
       sqrt(greatest(0, t.trace) / t.n / nullif(t.mean_own, 0)) AS relative_spread,
       CASE WHEN t.trace > 1e-13 * t.own THEN t.trace ** 2 / nullif(t.square, 0) END AS effective_rank
FROM totals AS t
ORDER BY t.site, t.layer, t.width;
