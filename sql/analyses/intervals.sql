-- How sure the cosines of `snapshot_reference` are: 95% intervals by bootstrap over the examples of each label.
--
-- The examples of each label are drawn anew, as many as there are, with replacement; the interval is the middle 95% of
-- what the resamples give, moved so that their mean lies on the estimate (a resample has fewer different examples, so
-- all its cosines are a little lower). It says how much the number depends on which examples were written, and covers
-- the number that as many other examples would give on average. NULL where a label has one example. Of few examples
-- it is too narrow: of eight it covers about nine times in ten, of two seven.
-- @param run_id a run id, `latest`, or a list of these
-- @param site a site, NULL for all; give it by name
-- @param resamples how many resamples; give it by name
-- @param seed another number gives other resamples; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column role role of that message
-- @column is_generated true for the snapshot after the generated reply
-- @column label label of the reference
-- @column n examples that the reference is the mean of
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the snapshot and the reference
-- @column cosine_low lower end of its interval
-- @column cosine_high upper end
-- @column centered_cosine cosine after the mean over the run's references was taken off both sides
-- @column centered_low lower end of its interval
-- @column centered_high upper end
-- @example
-- select layer, label, centered_cosine, centered_low, centered_high
-- from snapshot_interval('latest', site := 'hidden_out') where message_index = 1
CREATE OR REPLACE MACRO snapshot_interval(run_id, site := NULL, resamples := 200, seed := 0) AS TABLE
WITH spread AS (
  SELECT c.run_id AS run, c.prompt_id, c.message_index, c.label, c.site AS of_site, c.layer,
         avg(c.cosine) AS mean, quantile_cont(c.cosine, [0.025, 0.975]) AS ends,
         avg(c.centered_cosine) AS centered_mean, quantile_cont(c.centered_cosine, [0.025, 0.975]) AS centered_ends
  FROM _resampled_cosines(run_id, resamples, seed, site) AS c
  WHERE c.n > 1
  GROUP BY ALL
)
SELECT r.run_id, r.prompt_id, r.message_index, r.role, r.is_generated, r.label, r.n, r.site, r.layer, r.cosine,
       r.cosine + s.ends[1] - s.mean AS cosine_low, r.cosine + s.ends[2] - s.mean AS cosine_high,
       r.centered_cosine, r.centered_cosine + s.centered_ends[1] - s.centered_mean AS centered_low,
       r.centered_cosine + s.centered_ends[2] - s.centered_mean AS centered_high
FROM snapshot_reference(run_id) AS r
LEFT JOIN spread AS s
  ON s.run = r.run_id AND s.prompt_id = r.prompt_id AND s.message_index = r.message_index AND s.label = r.label
 AND s.of_site = r.site AND s.layer = r.layer
WHERE site IS NULL OR r.site = site
ORDER BY r.run_id, r.prompt_id, r.message_index, r.label, r.site, r.layer;

-- What `reference_shift` would be with other examples, for each resample of the labels' examples.
-- @param run_id a run id, `latest`, or a list of these
-- @param resamples how many
-- @param seed another number gives other draws
-- @param one_site a site, or NULL for all
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column label label of the reference
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column resample 0-based resample
-- @column n examples of the label
-- @column shift cosine beyond the usual
-- @example select label, avg(shift) from _resampled_shifts('latest', 10, 0, 'hidden_out') group by label
CREATE OR REPLACE MACRO _resampled_shifts(run_id, resamples, seed, one_site) AS TABLE
WITH over_layers AS (
  SELECT c.run_id AS run, c.prompt_id, c.message_index, c.label, c.site, c.resample, c.n, avg(c.cosine) AS cosine
  FROM _resampled_cosines(run_id, resamples, seed, one_site) AS c
  GROUP BY ALL
)
SELECT run AS run_id, prompt_id, message_index, label, site, resample, n,
       cosine - avg(cosine) OVER (PARTITION BY run, prompt_id, site, resample, message_index)
              - avg(cosine) OVER (PARTITION BY run, prompt_id, site, resample, label)
              + avg(cosine) OVER (PARTITION BY run, prompt_id, site, resample) AS shift
FROM over_layers;

-- How sure the numbers of `reference_shift` are: 95% intervals by bootstrap over the examples of each label, as
-- `snapshot_interval` has them.
-- @param run_id a run id, `latest`, or a list of these
-- @param site a site, NULL for all; give it by name
-- @param resamples how many resamples; give it by name
-- @param seed another number gives other resamples; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column role role of that message
-- @column is_generated true for the snapshot after the generated reply
-- @column label label of the reference
-- @column n examples that the reference is the mean of
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column shift cosine beyond what is usual for the message and for the reference
-- @column shift_low lower end of its interval; NULL where the label has one example
-- @column shift_high upper end
-- @example select message_index, label, shift, shift_low, shift_high from shift_interval('latest', site := 'hidden_out')
CREATE OR REPLACE MACRO shift_interval(run_id, site := NULL, resamples := 200, seed := 0) AS TABLE
WITH spread AS (
  SELECT c.run_id AS run, c.prompt_id, c.message_index, c.label, c.site AS of_site,
         avg(c.shift) AS mean, quantile_cont(c.shift, [0.025, 0.975]) AS ends
  FROM _resampled_shifts(run_id, resamples, seed, site) AS c
  WHERE c.n > 1
  GROUP BY ALL
)
SELECT r.run_id, r.prompt_id, r.message_index, r.role, r.is_generated, r.label, r.n, r.site, r.shift,
       r.shift + s.ends[1] - s.mean AS shift_low, r.shift + s.ends[2] - s.mean AS shift_high
FROM reference_shift(run_id) AS r
LEFT JOIN spread AS s
  ON s.run = r.run_id AND s.prompt_id = r.prompt_id AND s.message_index = r.message_index AND s.label = r.label
 AND s.of_site = r.site
WHERE site IS NULL OR r.site = site
ORDER BY r.run_id, r.prompt_id, r.site, r.message_index, r.label;

-- Towards which reference each message leans, by what margin over the next, and how sure that is.
--
-- By the numbers of `reference_shift`: for each message the reference with the largest. With several examples a label
-- the margin has a 95% interval by bootstrap over them, as `snapshot_interval` has it; where the interval holds 0,
-- other examples might have named another reference. With one example a label nothing can be said about that.
-- @param run_id a run id, `latest`, or a list of these
-- @param site a site, NULL for all; give it by name
-- @param resamples how many resamples; give it by name
-- @param seed another number gives other resamples; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column role role of that message
-- @column is_generated true for the snapshot after the generated reply
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column label label of the reference that the message leans to
-- @column shift cosine with it beyond what is usual for the message and for the reference
-- @column runner_up label of the next; NULL where there is one reference
-- @column margin how much larger the shift is than that of the next
-- @column margin_low lower end of its interval; NULL where neither label has several examples
-- @column margin_high upper end
-- @column agrees share of the resamples in which the message leans to the same reference; NULL likewise
-- @column n examples of the label, or of the next where that has fewer
-- @example select message_index, label, margin, margin_low, agrees from leaning('latest') where site = 'hidden_out'
CREATE OR REPLACE MACRO leaning(run_id, site := NULL, resamples := 200, seed := 0) AS TABLE
WITH ranked AS MATERIALIZED (
  SELECT r.run_id AS run, r.prompt_id, r.message_index, r.role, r.is_generated, r.site AS of_site,
         r.label, r.shift, r.n,
         row_number() OVER (PARTITION BY r.run_id, r.prompt_id, r.message_index, r.site
                            ORDER BY r.shift DESC, r.label) AS rank
  FROM reference_shift(run_id) AS r
  WHERE r.shift IS NOT NULL AND (site IS NULL OR r.site = site)
), firsts AS MATERIALIZED (
  SELECT a.*, b.label AS runner_up, a.shift - b.shift AS margin, least(a.n, b.n) AS fewer, greatest(a.n, b.n) AS more
  FROM ranked AS a LEFT JOIN ranked AS b
    ON b.run = a.run AND b.prompt_id = a.prompt_id AND b.message_index = a.message_index AND b.of_site = a.of_site
   AND b.rank = 2
  WHERE a.rank = 1
), margins AS (
  SELECT c.run_id AS run, c.prompt_id, c.message_index, c.site AS of_site, c.resample,
         max(c.shift) FILTER (c.label = f.label) - max(c.shift) FILTER (c.label = f.runner_up) AS margin,
         max(c.shift) FILTER (c.label = f.label) >= max(c.shift) AS first
  FROM _resampled_shifts(run_id, resamples, seed, site) AS c
  JOIN firsts AS f
    ON f.run = c.run_id AND f.prompt_id = c.prompt_id AND f.message_index = c.message_index AND f.of_site = c.site
  WHERE f.more > 1
  GROUP BY ALL
), spread AS (
  SELECT run, prompt_id, message_index, of_site, avg(margin) AS mean, quantile_cont(margin, [0.025, 0.975]) AS ends,
         avg(first::INTEGER) AS agrees
  FROM margins GROUP BY ALL
)
SELECT f.run AS run_id, f.prompt_id, f.message_index, f.role, f.is_generated, f.of_site AS site, f.label, f.shift,
       f.runner_up, f.margin, f.margin + s.ends[1] - s.mean AS margin_low,
       f.margin + s.ends[2] - s.mean AS margin_high, s.agrees, f.fewer AS n
FROM firsts AS f
LEFT JOIN spread AS s
  ON s.run = f.run AND s.prompt_id = f.prompt_id AND s.message_index = f.message_index AND s.of_site = f.of_site
ORDER BY f.run, f.prompt_id, f.of_site, f.message_index;

-- How sure a `direction` is: how far it turns when the examples of its two labels are drawn anew.
--
-- In a space of many dimensions two directions that have nothing to do with each other stand at nearly 90 degrees.
-- @param run_id a run id, `latest`, or a list of these
-- @param positive_label label of the reference that the direction points to
-- @param negative_label label of the reference that it points away from
-- @param resamples how many resamples; give it by name
-- @param seed another number gives other resamples; give it by name
-- @column run_id id of the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column n_positive examples of the first label
-- @column n_negative examples of the second
-- @column angle degrees within which 95% of the resampled directions lie from the direction; NULL where both labels
--   have one example
-- @example select site, layer, angle from direction_interval('latest', 'joy', 'fear')
CREATE OR REPLACE MACRO direction_interval(
  run_id, positive_label, negative_label, resamples := 200, seed := 0
) AS TABLE
WITH products AS (
  SELECT p.run_id AS run, p.site, p.layer,
         p.label_a, p.label_b, p.n_a, p.n_b, p.products,
         CASE WHEN p.label_a = p.label_b THEN 1 ELSE -1 END AS sign
  FROM _example_products(run_id, NULL, false) AS p
  WHERE positive_label <> negative_label
    AND p.label_a IN (positive_label, negative_label) AND p.label_b IN (positive_label, negative_label)
), draws AS (
  SELECT w.run_id AS run, w.label, w.resample, w.weights FROM _resamples_of(run_id, resamples, seed) AS w
  WHERE w.label IN (positive_label, negative_label)
), resampled AS (
  SELECT p.run, p.site, p.layer, a.resample,
         -- with the direction d and a resampled one e: e·e, e·d and d·d, each a sum over the pairs of labels
         sum(sign * list_inner_product(p.products, flatten([[x * y FOR y IN b.weights] FOR x IN a.weights]))) AS ee,
         sum(sign * list_inner_product(p.products, flatten([[x / n_b FOR y IN b.weights] FOR x IN a.weights]))) AS ed,
         sum(sign * list_avg(p.products)) AS dd
  FROM products AS p
  JOIN draws AS a ON a.run = p.run AND a.label = p.label_a
  JOIN draws AS b ON b.run = p.run AND b.label = p.label_b AND b.resample = a.resample
  GROUP BY ALL
), angles AS (
  SELECT run, site, layer, degrees(quantile_cont(acos(greatest(-1, least(1, ed / sqrt(ee * dd)))), 0.95)) AS angle
  FROM resampled WHERE ee > 0 AND dd > 0
  GROUP BY ALL
), counts AS (
  SELECT run, site, layer, max(n_a) FILTER (label_a = positive_label) AS n_positive,
         max(n_a) FILTER (label_a = negative_label) AS n_negative
  FROM products WHERE label_a = label_b
  GROUP BY ALL
)
SELECT c.run AS run_id, c.site, c.layer, c.n_positive, c.n_negative,
       CASE WHEN greatest(c.n_positive, c.n_negative) > 1 THEN g.angle END AS angle
FROM counts AS c LEFT JOIN angles AS g ON g.run = c.run AND g.site = c.site AND g.layer = c.layer
WHERE c.n_positive IS NOT NULL AND c.n_negative IS NOT NULL
ORDER BY c.run, c.site, c.layer;
