-- What each layer adds to the residual stream at the last token of every forward pass: the lengths of the state
-- and of both contributions, and how well each contribution points along the state that leaves the layer.
--
-- Reads the activations of the four sites. Where a run has none, because they were dropped or `capture.hidden_states`
-- was off, it falls back on the states, which have the first and the last pass. No rows without `capture.states`.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column layer 0-based decoder block
-- @column norm_hidden_in length of the residual stream that enters the layer
-- @column norm_attn_out length of what attention adds
-- @column norm_mlp_down_out length of what the MLP adds
-- @column norm_hidden_out length of the residual stream that leaves the layer
-- @column cosine_attn_out cosine of what attention adds with the stream that leaves
-- @column cosine_mlp_down_out cosine of what the MLP adds with the stream that leaves
-- @example select layer, norm_hidden_out, cosine_attn_out from residual_decomposition('latest') where step = 0
CREATE OR REPLACE MACRO residual_decomposition(run_id) AS TABLE
WITH parts AS (
  SELECT t.run_id, t.prompt_id, t.step, t.layer, t.hidden_in, t.attn_out, t.mlp_down_out, t.hidden_out
  FROM activations_of(run_id) AS t
  JOIN _last_positions_of(run_id) AS l
    ON t.run_id = l.run_id AND t.prompt_id = l.prompt_id AND t.step = l.step AND t.position = l.position
  UNION ALL
  SELECT s.run_id, s.prompt_id, s.state_index, s.layer,
         any_value(s.vector) FILTER (s.site = 'hidden_in'), any_value(s.vector) FILTER (s.site = 'attn_out'),
         any_value(s.vector) FILTER (s.site = 'mlp_down_out'), any_value(s.vector) FILTER (s.site = 'hidden_out')
  FROM states_of(run_id) AS s
  WHERE s.state IN ('initial', 'final')
    AND (NOT _has('activations', s.run_id)
         OR s.run_id IN (SELECT o.run_id FROM sites AS o WHERE o.reason = 'capture.hidden_states is off'))
  GROUP BY s.run_id, s.prompt_id, s.state_index, s.layer
)
SELECT p.run_id, prompt_id, step, layer,
       norm(hidden_in) AS norm_hidden_in, norm(attn_out) AS norm_attn_out,
       norm(mlp_down_out) AS norm_mlp_down_out, norm(hidden_out) AS norm_hidden_out,
       cosine(attn_out, hidden_out) AS cosine_attn_out, cosine(mlp_down_out, hidden_out) AS cosine_mlp_down_out
FROM parts AS p
WHERE hidden_in IS NOT NULL AND attn_out IS NOT NULL AND mlp_down_out IS NOT NULL AND hidden_out IS NOT NULL
ORDER BY p.run_id, prompt_id, step, layer;
