-- How the state after each message moves between the references: what its cosine with a reference has beyond what
-- is usual for that message and for that reference.
--
-- Averaged over layers; then the mean of the message and the mean of the reference are taken off, so that rows and
-- columns add up to zero. What all states share is gone, and what is left tells one emotion from another.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the snapshot has seen
-- @column role role of that message
-- @column is_generated true for the snapshot after the generated reply
-- @column label label of the reference
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column shift cosine beyond the usual; above zero where the message lies nearer to the reference than others do
-- @column n examples that the reference is the mean of; `shift_interval` and `leaning` say how sure the shift is
-- @example pivot (from reference_shift('latest')) on label using first(shift) group by site, message_index, role
CREATE OR REPLACE MACRO reference_shift(run_id) AS TABLE
WITH mean_over_layers AS (
  SELECT c.run_id, prompt_id, message_index, role, is_generated, label, site, n, avg(cosine) AS cosine
  FROM snapshot_cosine(run_id) AS c
  GROUP BY ALL
)
SELECT m.run_id, prompt_id, message_index, role, is_generated, label, site,
       cosine - avg(cosine) OVER (PARTITION BY m.run_id, prompt_id, site, message_index)
              - avg(cosine) OVER (PARTITION BY m.run_id, prompt_id, site, label)
              + avg(cosine) OVER (PARTITION BY m.run_id, prompt_id, site) AS shift, n
FROM mean_over_layers AS m
ORDER BY m.run_id, prompt_id, site, message_index, label;
