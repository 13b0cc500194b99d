-- Every token of a run on the line from one reference to another, at one layer and site.
--
-- Zero lies at the midpoint of the two references, the positive one at `positive_end` and the negative one at
-- `negative_end`, in the same unit; beyond them lies what is further along the line than the references are. A token
-- of extreme length reaches far along any line: `is_extreme` marks those whose vector is more than `times` times as
-- long as the median of the run's tokens at this layer and site, or less than a `times`-th of it. Such are attention
-- sinks, mostly first tokens. Leave them out where the largest projections are asked for, or take `relative`.
-- No rows where the site was not captured, and none where the run has no such references (`reference_states`).
-- @param run_id a run id, `latest`, or a list of these
-- @param positive_label label of the reference that scores high
-- @param negative_label label of the reference that scores low
-- @param layer 0-based decoder block
-- @param site hidden_in, hidden_out, attn_out or mlp_down_out
-- @param times how many times as long as the median, or as short, counts as extreme; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column position 0-based place of the token in the whole sequence
-- @column token text of the token
-- @column role role of the message that the token belongs to
-- @column projection how far the token's vector reaches along the direction, from the midpoint of the references
-- @column cosine cosine of the token's vector and the direction
-- @column relative projection over the length of the token's vector; NULL where that is 0
-- @column norm length of the token's vector
-- @column is_extreme whether that is out of the usual
-- @column positive_end where the positive reference lies: half the length of the direction
-- @column negative_end where the negative one lies, as far on the other side
-- @column n_positive examples of the first label; `direction_interval` says how sure the direction is
-- @column n_negative examples of the second label
-- @example
-- select token, projection, positive_end from token_projection('latest', 'joy', 'fear', 1, 'hidden_out')
-- where not is_extreme order by projection desc limit 10
CREATE OR REPLACE MACRO token_projection(run_id, positive_label, negative_label, layer, site, times := 4) AS TABLE
WITH lines AS (  -- with the references p and q: where their midpoint lies along p − q, times the length of that
  SELECT s.run_id AS run, (max(norm(s.vector) ** 2) FILTER (s.label = positive_label)
                           - max(norm(s.vector) ** 2) FILTER (s.label = negative_label)) / 2 AS midpoint
  FROM states_of(run_id) AS s
  WHERE s.state = 'reference' AND s.site = site AND s.layer = layer
  GROUP BY s.run_id
), points AS (
  SELECT t.run_id AS run, t.prompt_id, t.step, t.position, t.vector, norm(t.vector) AS length
  FROM tensor_of(run_id, site) AS t
  WHERE t.layer = layer
), medians AS (
  SELECT run, median(length) AS length FROM points GROUP BY run
), projected AS (
  SELECT p.run, p.prompt_id, p.step, p.position, p.length, d.norm, d.n_positive, d.n_negative,
         project(p.vector, d.direction) - l.midpoint / nullif(d.norm, 0) AS projection,
         cosine(p.vector, d.direction) AS cosine,
         p.length > times * m.length OR p.length * times < m.length AS is_extreme
  FROM points AS p
  JOIN direction(run_id, positive_label, negative_label) AS d
    ON d.run_id = p.run AND d.layer = layer AND d.site = site
  JOIN lines AS l ON l.run = p.run
  JOIN medians AS m ON m.run = p.run
)
SELECT p.run AS run_id, p.prompt_id, p.step, p.position, n.token, n.role, p.projection, p.cosine,
       p.projection / nullif(p.length, 0) AS relative, p.length AS norm, p.is_extreme,
       p.norm / 2 AS positive_end, -p.norm / 2 AS negative_end, p.n_positive, p.n_negative
FROM projected AS p
LEFT JOIN _tokens_of(run_id) AS n ON n.run_id = p.run AND n.prompt_id = p.prompt_id AND n.position = p.position
ORDER BY p.run, p.prompt_id, p.step, p.position;
