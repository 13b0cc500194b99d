-- The examples of a run's references, one row each and site and layer: a label's states `example`, or its reference
-- where it has one example only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column label label of the example
-- @column n examples of the label
-- @column example 0-based place among the examples of the label
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column vector the state
-- @example select label, n, example from _examples_of('latest') where site = 'hidden_out' and layer = 0
CREATE OR REPLACE MACRO _examples_of(run_id) AS TABLE
WITH kept AS (
  SELECT DISTINCT s.run_id AS run, s.label, s.state, s.state_index
  FROM states_of(run_id) AS s WHERE s.state IN ('reference', 'example')
), sorted AS (
  SELECT run, label, state, state_index, bool_or(state = 'example') OVER (PARTITION BY run, label) AS several
  FROM kept
), numbered AS (
  SELECT run, label, state, state_index, count(*) OVER (PARTITION BY run, label) AS n,
         row_number() OVER (PARTITION BY run, label ORDER BY state_index) - 1 AS example
  FROM sorted WHERE several = (state = 'example')
)
SELECT k.run AS run_id, k.label, k.n, k.example, s.site, s.layer, s.vector
FROM states_of(run_id) AS s
JOIN numbered AS k ON k.run = s.run_id AND k.label = s.label AND k.state = s.state AND k.state_index = s.state_index;

-- The references of a run with the number of their examples.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column label label of the reference
-- @column n examples that the reference is the mean of
-- @example select label, n from _references_of('latest')
CREATE OR REPLACE MACRO _references_of(run_id) AS TABLE
SELECT r.run_id, r.label, coalesce(r.n, 1) AS n
FROM reference_states AS r JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON r.run_id = asked;

-- Inner products of the examples of two labels, every one of the first with every one of the second, for every two
-- labels in both orders and each with itself.
-- @param run_id a run id, `latest`, or a list of these
-- @param one_site a site, or NULL for all
-- @param several true for those runs only in which some label has several examples
-- @column run_id id of the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column label_a a label
-- @column label_b a label
-- @column n_a examples of the first
-- @column n_b examples of the second
-- @column products DOUBLE[] of n_a · n_b inner products, those of the first's first example first
-- @example select label_a, label_b, products from _example_products('latest', 'hidden_out', false) where layer = 0
CREATE OR REPLACE MACRO _example_products(run_id, one_site, several) AS TABLE
WITH examples AS MATERIALIZED (
  SELECT run, label, n, example, site, layer, vector FROM (
    SELECT e.run_id AS run, e.label, e.n, e.example, e.site, e.layer, e.vector::DOUBLE[] AS vector
    FROM _examples_of(run_id) AS e WHERE one_site IS NULL OR e.site = one_site
  )
  WHERE NOT several OR run IN (SELECT r.run_id FROM _references_of(run_id) AS r WHERE r.n > 1)
)
SELECT a.run AS run_id, a.site, a.layer, a.label AS label_a, b.label AS label_b, a.n AS n_a, b.n AS n_b,
       list(list_inner_product(a.vector, b.vector) ORDER BY a.example, b.example) AS products
FROM examples AS a JOIN examples AS b ON b.run = a.run AND b.site = a.site AND b.layer = a.layer
GROUP BY ALL;

-- How often each example is drawn when a label's examples are drawn anew, as many as there are, with replacement: the
-- resamples of a bootstrap. The same draws for every site and layer, every time and in every DuckDB. No rows where
-- every label of the run has one example.
-- @param run_id a run id, `latest`, or a list of these
-- @param resamples how many
-- @param seed another number gives other draws
-- @column run_id id of the run
-- @column label label of the reference
-- @column n examples of the label
-- @column resample 0-based resample
-- @column labels number of labels
-- @column weights share of the draws of each example, DOUBLE[]
-- @column weights_of_all the same over all labels one after the other by name, each label's divided by their number
-- @example select label, weights from _resamples_of('latest', 200, 0) where resample < 3
CREATE OR REPLACE MACRO _resamples_of(run_id, resamples, seed) AS TABLE
WITH labels AS (
  SELECT r.run_id AS run, r.label, r.n, max(r.n) OVER (PARTITION BY r.run_id) AS most,
         count(*) OVER (PARTITION BY r.run_id) AS labels
  FROM _references_of(run_id) AS r
), draws AS (
  SELECT run, label, n, labels, resample,
         [('0x' || left(md5(concat_ws('/', seed, label, resample, draw)), 8))::BIGINT % n
          FOR draw IN range(n)] AS drawn
  FROM labels CROSS JOIN (SELECT unnest(range(resamples)) AS resample)
  WHERE most > 1
), weighted AS (
  SELECT run, label, n, labels, resample, [len([1 FOR d IN drawn IF d = i])::DOUBLE / n FOR i IN range(n)] AS weights
  FROM draws
)
SELECT w.run AS run_id, w.label, w.n, w.resample, w.labels, w.weights, a.weights_of_all
FROM weighted AS w
JOIN (SELECT run, resample, flatten(list([x / labels FOR x IN weights] ORDER BY label)) AS weights_of_all
      FROM weighted GROUP BY run, resample) AS a ON a.run = w.run AND a.resample = w.resample;

-- Inner products of the references of a run as if their examples were those of each resample.
-- @param run_id a run id, `latest`, or a list of these
-- @param resamples how many
-- @param seed another number gives other draws
-- @param one_site a site, or NULL for all
-- @column run_id id of the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column label label of the reference
-- @column own inner product of the resampled reference with itself, a list of one a resample
-- @column with_mean with the mean of the resampled references over the labels, likewise
-- @column mean_own of that mean with itself, likewise
-- @example select label, own from _resampled_references('latest', 10, 0, 'hidden_out') where layer = 0
CREATE OR REPLACE MACRO _resampled_references(run_id, resamples, seed, one_site) AS TABLE
WITH draws AS MATERIALIZED (
  SELECT w.run_id AS run, w.label, w.resample, w.weights, w.labels FROM _resamples_of(run_id, resamples, seed) AS w
), pairs AS (
  SELECT a.run, a.label, b.label AS other, a.resample, a.labels,
         flatten([[x * y FOR y IN b.weights] FOR x IN a.weights]) AS weights
  FROM draws AS a JOIN draws AS b ON b.run = a.run AND b.resample = a.resample
), weights AS (
  SELECT run, label, list(own ORDER BY resample) AS own, list(mean ORDER BY resample) AS mean
  FROM (
    SELECT run, label, resample, any_value(weights) FILTER (label = other) AS own,
           flatten(list([w / labels FOR w IN weights] ORDER BY other)) AS mean
    FROM pairs GROUP BY run, label, resample
  )
  GROUP BY run, label
), products AS (
  SELECT p.run_id AS run, p.site, p.layer, p.label_a AS label,
         any_value(p.products) FILTER (p.label_a = p.label_b) AS own,
         flatten(list(p.products ORDER BY p.label_b)) AS all_of
  FROM _example_products(run_id, one_site, true) AS p
  GROUP BY ALL
), resampled AS MATERIALIZED (
  SELECT p.run, p.site, p.layer, p.label, [list_inner_product(p.own, w) FOR w IN d.own] AS own,
         [list_inner_product(p.all_of, w) FOR w IN d.mean] AS with_mean
  FROM products AS p JOIN weights AS d ON d.run = p.run AND d.label = p.label
)
SELECT r.run AS run_id, r.site, r.layer, r.label, r.own, r.with_mean, m.mean_own
FROM resampled AS r
JOIN (SELECT run, site, layer, list(mean_own ORDER BY resample) AS mean_own
      FROM (SELECT run, site, layer, resample, avg(x) AS mean_own
            FROM (SELECT run, site, layer, unnest(range(resamples)) AS resample, unnest(with_mean) AS x
                  FROM resampled)
            GROUP BY ALL)
      GROUP BY ALL) AS m ON m.run = r.run AND m.site = r.site AND m.layer = r.layer;

-- The cosines of `snapshot_reference` as they would be with other examples: for each resample of the labels' examples
-- that of each snapshot with each resampled reference. No rows where every label has one example.
-- @param run_id a run id, `latest`, or a list of these
-- @param resamples how many
-- @param seed another number gives other draws
-- @param one_site a site, or NULL for all
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column label label of the reference
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column n examples of the label
-- @column resample 0-based resample
-- @column cosine cosine of the snapshot and the resampled reference
-- @column centered_cosine the same after the mean over the resampled references was taken off both
-- @example select avg(cosine) from _resampled_cosines('latest', 10, 0, 'hidden_out')
CREATE OR REPLACE MACRO _resampled_cosines(run_id, resamples, seed, one_site) AS TABLE
WITH draws AS (
  SELECT w.run_id AS run, w.label, w.n, list(w.weights ORDER BY w.resample) AS weights,
         list(w.weights_of_all ORDER BY w.resample) AS weights_of_all
  FROM _resamples_of(run_id, resamples, seed) AS w
  GROUP BY ALL
), several AS (
  SELECT DISTINCT r.run_id AS run FROM _references_of(run_id) AS r WHERE r.n > 1
), examples AS (
  SELECT e.run_id AS run, e.label, e.example, e.site, e.layer, e.vector::DOUBLE[] AS vector
  FROM _examples_of(run_id) AS e JOIN several ON several.run = e.run_id
  WHERE one_site IS NULL OR e.site = one_site
), snapshots AS (
  SELECT row_number() OVER () AS id, s.run_id AS run, s.prompt_id, s.state_index, s.site, s.layer,
         s.vector::DOUBLE[] AS vector
  FROM states_of(run_id) AS s JOIN several ON several.run = s.run_id
  WHERE s.state = 'snapshot' AND (one_site IS NULL OR s.site = one_site)
), products AS MATERIALIZED (
  SELECT s.id, s.run, s.prompt_id, s.state_index, s.site, s.layer, e.label,
         any_value(list_inner_product(s.vector, s.vector)) AS own,
         list(list_inner_product(s.vector, e.vector) ORDER BY e.example) AS products
  FROM snapshots AS s JOIN examples AS e ON e.run = s.run AND e.site = s.site AND e.layer = s.layer
  GROUP BY ALL
), means AS (
  SELECT p.id, [list_inner_product(p.products, w) FOR w IN d.weights_of_all] AS with_mean
  FROM (SELECT id, run, flatten(list(products ORDER BY label)) AS products FROM products GROUP BY id, run) AS p
  JOIN (SELECT run, any_value(weights_of_all) AS weights_of_all FROM draws GROUP BY run) AS d ON d.run = p.run
)
SELECT c.run AS run_id, c.prompt_id, c.state_index AS message_index, c.label, c.site, c.layer, c.n, c.resample,
       c.product / nullif(sqrt(c.own * c.ref_own), 0) AS cosine,
       (c.product - c.with_mean - c.ref_with_mean + c.mean_own)
         / nullif(sqrt(greatest(0, (c.own - 2 * c.with_mean + c.mean_own)
                                   * (c.ref_own - 2 * c.ref_with_mean + c.mean_own))), 0) AS centered_cosine
FROM (
  SELECT p.run, p.prompt_id, p.state_index, p.label, p.site, p.layer, d.n, p.own,
         unnest(range(resamples)) AS resample,
         unnest([list_inner_product(p.products, w) FOR w IN d.weights]) AS product, unnest(m.with_mean) AS with_mean,
         unnest(r.own) AS ref_own, unnest(r.with_mean) AS ref_with_mean, unnest(r.mean_own) AS mean_own
  FROM products AS p
  JOIN draws AS d ON d.run = p.run AND d.label = p.label
  JOIN means AS m ON m.id = p.id
  JOIN _resampled_references(run_id, resamples, seed, one_site) AS r
    ON r.run_id = p.run AND r.site = p.site AND r.layer = p.layer AND r.label = p.label
) AS c;
