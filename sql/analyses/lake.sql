-- The activations of one run; opens that run's files only, in a lake of any size.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the view `activations`
-- @example select count(*) from activations_of('latest')
CREATE OR REPLACE MACRO activations_of(run_id) AS TABLE
SELECT run AS run_id, prompt_id, step, kind, position, layer,
       hidden_in, hidden_out, q, k, v, attn_out, mlp_gate, mlp_up, mlp_down_in, mlp_down_out,
       mlp_down_in AS mlp_act
FROM _rows_by_layer(_files_of('activations', run_id, '/steps=*/layer=*/*.parquet'));

-- The attention weights of one run; opens that run's files only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the view `attention`
-- @example select count(*) from attention_of('latest')
CREATE OR REPLACE MACRO attention_of(run_id) AS TABLE
SELECT run AS run_id, prompt_id, step, layer, head, position, weights
FROM _rows_by_layer(_files_of('attention', run_id, '/steps=*/layer=*/*.parquet'));

-- The embeddings and logits of one run; opens that run's files only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the view `outputs`
-- @example select count(*) from outputs_of('latest')
CREATE OR REPLACE MACRO outputs_of(run_id) AS TABLE
SELECT run AS run_id, prompt_id, step, position, embeddings, logits
FROM _rows_of(_files_of('outputs', run_id, '/steps=*/*.parquet'));

-- The last-token states of one run; opens that run's file only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the view `states`
-- @example select count(*) from states_of('latest')
CREATE OR REPLACE MACRO states_of(run_id) AS TABLE
SELECT run AS run_id, prompt_id, state, state_index, label, layer, site, vector
FROM _rows_of(_files_of('states', run_id, '/*.parquet'));
