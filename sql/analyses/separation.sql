-- How far the references of a run lie apart themselves, per site and layer: which layers can tell the labels from each
-- other at all, whatever the conversation says.
--
-- `discriminative_layers` asks the other question: which layers tell apart how near the conversation's turns come to
-- each label. Lengths are given relative to the references' own, so that layers compare. Only with several examples a
-- label is there something to hold the distances against: `ratio` is the mean square between the labels over that
-- within them, about 1 where the labels mean nothing to the layer.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column labels number of references
-- @column n examples of all of them
-- @column distance mean over the pairs of references of 1 − cosine; NULL with one reference
-- @column distance_min the least of a pair
-- @column label_a first label of that pair
-- @column label_b second label of that pair
-- @column spread root mean square distance of the references from their mean, over their root mean square length
-- @column within likewise of the examples from the mean of their label, without bias; NULL where all have one example
-- @column ratio mean square between the labels over mean square within them (F); NULL where all have one example
-- @example select layer, distance, label_a, label_b from reference_separation('latest') where site = 'hidden_out'
CREATE OR REPLACE MACRO reference_separation(run_id) AS TABLE
WITH products AS (
  SELECT p.run_id AS run, p.site, p.layer, p.label_a, p.label_b, p.n_a, p.n_b, list_avg(p.products) AS product,
         -- of a label with itself: the examples' own squares, which stand on the diagonal
         CASE WHEN p.label_a = p.label_b
              THEN list_sum([p.products[1 + i * (p.n_a + 1)] FOR i IN range(p.n_a)]) END AS squares
  FROM _example_products(run_id, NULL, false) AS p
), owns AS MATERIALIZED (
  SELECT run, site, layer, label_a AS label, product AS own, n_a AS n, squares FROM products WHERE label_a = label_b
), pairs AS (
  SELECT p.run, p.site, p.layer, p.label_a, p.label_b, p.product, p.n_a, p.n_b,
         1 - _clamp(p.product / nullif(sqrt(a.own * b.own), 0)) AS distance
  FROM products AS p
  JOIN owns AS a ON a.run = p.run AND a.site = p.site AND a.layer = p.layer AND a.label = p.label_a
  JOIN owns AS b ON b.run = p.run AND b.site = p.site AND b.layer = p.layer AND b.label = p.label_b
  WHERE p.label_a < p.label_b
), between_pairs AS (
  SELECT run, site, layer, avg(distance) AS distance, min(distance) AS distance_min,
         min_by([label_a, label_b], (distance, label_a, label_b)) FILTER (distance IS NOT NULL) AS nearest,
         sum(product) AS product, sum(product * n_a * n_b) AS weighted
  FROM pairs GROUP BY ALL
), of_labels AS (
  SELECT run, site, layer, count(*) AS labels, sum(n) AS n, sum(own) AS own, sum(n * own) AS weighted,
         sum(n * n * own) AS twice, sum(squares) AS squares
  FROM owns GROUP BY ALL
)
SELECT o.run AS run_id, o.site, o.layer, o.labels, o.n::BIGINT AS n, b.distance, b.distance_min,
       b.nearest[1] AS label_a, b.nearest[2] AS label_b,
       -- Σ|r − m|² = Σ|r|² − L|m|², and L²|m|² is the sum of all products
       sqrt(greatest(0, o.own - (o.own + 2 * coalesce(b.product, 0)) / o.labels) / nullif(o.own, 0)) AS spread,
       CASE WHEN o.n > o.labels
            THEN sqrt(greatest(0, o.squares - o.weighted) / (o.n - o.labels) / nullif(o.own / o.labels, 0))
            END AS within,
       CASE WHEN o.n > o.labels
            THEN greatest(0, o.weighted - (o.twice + 2 * b.weighted) / o.n) / (o.labels - 1)
                 / nullif((o.squares - o.weighted) / (o.n - o.labels), 0) END AS ratio
FROM of_labels AS o LEFT JOIN between_pairs AS b ON b.run = o.run AND b.site = o.site AND b.layer = o.layer
ORDER BY o.run, o.site, o.layer;
