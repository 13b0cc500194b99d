-- One site of one run in long form: a vector per token, layer and forward pass.
--
-- Reads that site's column of that run's files only. No rows for a site that was not captured
-- (`capture.hidden_states`, `qkv`, `mlp` and `layers` of the scenario); `sites` of the run says why.
-- @param run_id a run id, `latest`, or a list of these
-- @param site hidden_in, hidden_out, q, k, v, attn_out, mlp_gate, mlp_up, mlp_down_in (or mlp_act), mlp_down_out
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column kind prefill or decode
-- @column position 0-based place of the token in the whole sequence
-- @column layer 0-based decoder block
-- @column vector the activation
-- @example select position, layer, norm(vector) from tensor_of('latest', 'attn_out') where step = 1
CREATE OR REPLACE MACRO tensor_of(run_id, site) AS TABLE
SELECT * FROM (
  SELECT t.run_id, t.prompt_id, t.step, t.kind, t.position, t.layer,
         _site_column(site, t.hidden_in, t.hidden_out, t.q, t.k, t.v, t.attn_out, t.mlp_gate, t.mlp_up,
                      t.mlp_down_in, t.mlp_down_out) AS vector
  FROM activations_of(run_id) AS t
) AS long
WHERE long.vector IS NOT NULL;

-- Last position that each forward pass of a run read.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column position position of the last token of the pass
-- @example select * from _last_positions_of('latest')
CREATE OR REPLACE MACRO _last_positions_of(run_id) AS TABLE
SELECT s.run_id, s.prompt_id, s.step, s.seq_len - 1 AS position
FROM steps AS s JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON s.run_id = asked;
