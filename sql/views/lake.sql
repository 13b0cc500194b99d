-- Every captured tensor: one row per token, layer and forward pass, one column per site.
--
-- `layers(run_id)` and `sites(run_id)` say where each was taken; a site that was not captured is NULL.
-- Filter on run_id and layer first: both are folders, so files of other runs and layers are never opened.
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass: 0 is the prefill
-- @column kind prefill or decode
-- @column position 0-based place of the token in the whole sequence
-- @column layer 0-based decoder block
-- @column hidden_in residual stream that enters the layer
-- @column hidden_out residual stream that leaves the layer
-- @column q query projection, before RoPE and before the head split
-- @column k key projection, before RoPE and before the head split
-- @column v value projection, before the head split
-- @column attn_out what the attention sub-layer adds to the residual stream
-- @column mlp_gate gate projection
-- @column mlp_up up projection; the only input projection where the MLP has no gate
-- @column mlp_down_in input of the down projection
-- @column mlp_down_out what the MLP sub-layer adds to the residual stream
-- @column mlp_act the same tensor as mlp_down_in: the MLP's neurons after the activation
-- @example select count(*) from activations
CREATE OR REPLACE VIEW activations AS
SELECT f.run AS run_id, f.prompt_id, f.step, f.kind, f.position, f.layer,
       f.hidden_in, f.hidden_out, f.q, f.k, f.v, f.attn_out, f.mlp_gate, f.mlp_up, f.mlp_down_in, f.mlp_down_out,
       f.mlp_down_in AS mlp_act
FROM read_parquet(_files_of_all('activations', '/steps=*/layer=*/*.parquet'),
                  hive_partitioning = true,
                  hive_types = {'run': VARCHAR, 'steps': VARCHAR, 'layer': INTEGER}) AS f
WHERE _has('activations', f.run);

-- Attention weights: one row per head and query position.
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column layer 0-based decoder block
-- @column head 0-based attention head
-- @column position position of the query token
-- @column weights weight of each key position 0 … position
-- @example select count(*) from attention
CREATE OR REPLACE VIEW attention AS
SELECT f.run AS run_id, f.prompt_id, f.step, f.layer, f.head, f.position, f.weights
FROM read_parquet(_files_of_all('attention', '/steps=*/layer=*/*.parquet'),
                  hive_partitioning = true,
                  hive_types = {'run': VARCHAR, 'steps': VARCHAR, 'layer': INTEGER}) AS f
WHERE _has('attention', f.run);

-- Token embeddings and logits: one row per token and forward pass.
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column position position of the token
-- @column embeddings output of the token embedding
-- @column logits scores over the vocabulary for the next token; NULL where not captured
-- @example select count(*) from outputs
CREATE OR REPLACE VIEW outputs AS
SELECT f.run AS run_id, f.prompt_id, f.step, f.position, f.embeddings, f.logits
FROM read_parquet(_files_of_all('outputs', '/steps=*/*.parquet'),
                  hive_partitioning = true,
                  hive_types = {'run': VARCHAR, 'steps': VARCHAR}) AS f
WHERE _has('outputs', f.run);

-- Last-token states: the small dataset that every comparison reads.
--
-- It keeps working after the bulky activations of a run were dropped.
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references and examples, which belong to the whole run
-- @column state initial (prefill), final (last decode step), snapshot, reference, or example: each of those that a
--   reference of several examples is the mean of; the only example of a label is its reference
-- @column state_index step of an initial or final state, message_index of a snapshot, ref_index of a reference, place
--   of an example in the scenario
-- @column label label of a reference or example, else NULL
-- @column layer 0-based decoder block
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column vector the state, as wide as the residual stream
-- @example select count(*) from states
CREATE OR REPLACE VIEW states AS
SELECT f.run AS run_id, f.prompt_id, f.state, f.state_index, f.label, f.layer, f.site, f.vector
FROM read_parquet(_files_of_all('states', '/*.parquet'),
                  hive_partitioning = true, hive_types = {'run': VARCHAR}) AS f
WHERE _has('states', f.run);
