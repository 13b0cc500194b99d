-- Mean similarity of each role's turns with each reference, per site and layer; the generated reply is left out.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column role role of the turns that are averaged
-- @column turns number of turns
-- @column label label of the reference
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine mean cosine over the turns
-- @column mae mean over the turns of the mean absolute difference
-- @column jaccard mean over the turns of the overlap of the largest 1% of the dimensions
-- @column n examples that the reference is the mean of
-- @example select role, label, avg(cosine) from role_average('latest') group by all
CREATE OR REPLACE MACRO role_average(run_id) AS TABLE
SELECT t.run_id, prompt_id, role, count(*) AS turns, label, site, layer,
       avg(cosine) AS cosine, avg(mae) AS mae, avg(jaccard) AS jaccard, any_value(n) AS n
FROM snapshot_reference(run_id) AS t
WHERE NOT is_generated
GROUP BY t.run_id, prompt_id, role, label, site, layer
ORDER BY t.run_id, prompt_id, role, label, site, layer;

-- One line per reference and site: its similarity with the whole conversation, over all turns and layers.
--
-- The generated reply is left out.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column label label of the reference
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column cosine_mean mean cosine over turns and layers
-- @column cosine_std its population standard deviation
-- @column cosine_median its median
-- @column cosine_min its least value
-- @column cosine_max its largest value
-- @column mae_mean mean of the mean absolute difference
-- @column jaccard_mean mean overlap of the largest 1% of the dimensions
-- @column n examples that the reference is the mean of
-- @example select label, site, cosine_mean from reference_summary('latest')
CREATE OR REPLACE MACRO reference_summary(run_id) AS TABLE
SELECT t.run_id, prompt_id, label, site,
       avg(cosine) AS cosine_mean, stddev_pop(cosine) AS cosine_std, median(cosine) AS cosine_median,
       min(cosine) AS cosine_min, max(cosine) AS cosine_max, avg(mae) AS mae_mean, avg(jaccard) AS jaccard_mean,
       any_value(n) AS n
FROM snapshot_reference(run_id) AS t
WHERE NOT is_generated
GROUP BY t.run_id, prompt_id, label, site
ORDER BY t.run_id, prompt_id, label, site;

-- How far each site and layer tells the references apart: the spread over the references of the mean cosine of a
-- role's turns. The generated reply is left out.
--
-- This is about the conversation's turns: a layer can only tell by them what the references themselves differ in.
-- How far those lie apart, whatever the conversation says, is the question of `reference_separation`.
-- @param run_id a run id, `latest`, or a list of these
-- @param centered true to take the mean over the references off first; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column role role of the turns that are averaged
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column spread largest minus least mean cosine over the references
-- @column std population standard deviation over the references
-- @column closest label of the reference with the largest mean cosine
-- @column n examples of the label that has the fewest
-- @example select role, site, layer, spread from discriminative_layers('latest') order by spread desc limit 5
CREATE OR REPLACE MACRO discriminative_layers(run_id, centered := false) AS TABLE
SELECT t.run_id, prompt_id, role, site, layer,
       max(cosine) - min(cosine) AS spread, stddev_pop(cosine) AS std,
       max_by(label, (cosine, label)) FILTER (cosine IS NOT NULL) AS closest, min(n) AS n
FROM (
  SELECT c.run_id, prompt_id, role, site, layer, label, avg(cosine) AS cosine, any_value(n) AS n
  FROM snapshot_cosine(run_id, centered := centered) AS c
  WHERE NOT is_generated
  GROUP BY c.run_id, prompt_id, role, site, layer, label
) AS t
GROUP BY t.run_id, prompt_id, role, site, layer
ORDER BY t.run_id, prompt_id, role, site, layer;

-- How much closer the assistant's turns are to each reference than the user's: below zero, the assistant damps
-- what the user brings. Averaged over turns and layers; the generated reply is left out.
-- @param run_id a run id, `latest`, or a list of these
-- @param centered true to take the mean over the references off first; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column label label of the reference; NULL for the mean over all references
-- @column cosine_user mean cosine of the user's turns
-- @column cosine_assistant mean cosine of the assistant's turns
-- @column damping assistant minus user; NULL where one of them has no turn
-- @column n examples that the reference is the mean of; over all references, of the label that has the fewest
-- @example select site, damping from damping('latest', centered := true) where label is null
CREATE OR REPLACE MACRO damping(run_id, centered := false) AS TABLE
SELECT t.run_id, prompt_id, site, label,
       avg(cosine) FILTER (role = 'user') AS cosine_user,
       avg(cosine) FILTER (role = 'assistant') AS cosine_assistant,
       avg(cosine) FILTER (role = 'assistant') - avg(cosine) FILTER (role = 'user') AS damping, min(n) AS n
FROM snapshot_cosine(run_id, centered := centered) AS t
WHERE NOT is_generated
GROUP BY GROUPING SETS ((t.run_id, prompt_id, site, label), (t.run_id, prompt_id, site))
ORDER BY t.run_id, prompt_id, site, label NULLS FIRST;

-- How long a turn stays in memory: the reference that a user's turn is closest to, and the similarity of the later
-- states with that same reference. Averaged over layers.
-- @param run_id a run id, `latest`, or a list of these
-- @param centered true to take the mean over the references off first; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column origin message_index of the user's turn
-- @column label label of the reference that the turn is closest to
-- @column message_index message after which the state is compared, the turn itself first
-- @column turns_since messages since the turn
-- @column is_generated true for the state after the generated reply
-- @column cosine mean cosine over the layers
-- @column n examples that the reference is the mean of
-- @example select turns_since, avg(cosine) from memory_fade('latest') where site = 'hidden_out' group by 1 order by 1
CREATE OR REPLACE MACRO memory_fade(run_id, centered := false) AS TABLE
WITH means AS MATERIALIZED (
  SELECT c.run_id, prompt_id, site, label, message_index, role, is_generated, avg(cosine) AS cosine, any_value(n) AS n
  FROM snapshot_cosine(run_id, centered := centered) AS c
  GROUP BY c.run_id, prompt_id, site, label, message_index, role, is_generated
), origins AS (
  SELECT m.run_id, prompt_id, site, message_index AS origin, max_by(label, (cosine, label)) AS label
  FROM means AS m
  WHERE role = 'user' AND NOT is_generated AND cosine IS NOT NULL
  GROUP BY m.run_id, prompt_id, site, message_index
)
SELECT o.run_id, prompt_id, site, origin, label,
       message_index, message_index - origin AS turns_since, is_generated, cosine, n
FROM origins AS o JOIN means AS m USING (run_id, prompt_id, site, label)
WHERE message_index >= origin
ORDER BY o.run_id, prompt_id, site, origin, message_index;
