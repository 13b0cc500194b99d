-- One dimension of one site and layer over all tokens of a run.
--
-- No rows where the site was not captured (`capture.hidden_states`, `qkv`, `mlp` and `layers` of the scenario).
-- @param run_id a run id, `latest`, or a list of these
-- @param layer 0-based decoder block
-- @param site a site of `activations`, such as mlp_act
-- @param neuron 0-based dimension of the site
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column position 0-based place of the token in the whole sequence
-- @column token text of the token
-- @column role role of the message that the token belongs to
-- @column value activation of the neuron; NULL beyond the width of the site
-- @example select position, token, value from neuron_trajectory('latest', 0, 'mlp_act', 5) order by value desc limit 3
CREATE OR REPLACE MACRO neuron_trajectory(run_id, layer, site, neuron) AS TABLE
SELECT t.run_id, t.prompt_id, t.step, t.position, n.token, n.role, t.vector[neuron + 1] AS value
FROM tensor_of(run_id, site) AS t
LEFT JOIN _tokens_of(run_id) AS n
  ON n.run_id = t.run_id AND n.prompt_id = t.prompt_id AND n.position = t.position
WHERE t.layer = layer
ORDER BY t.run_id, t.prompt_id, t.step, t.position;

-- The tokens of one run.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the table `tokens`
-- @example select position, token from _tokens_of('latest')
CREATE OR REPLACE MACRO _tokens_of(run_id) AS TABLE
SELECT t.* FROM tokens AS t JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON t.run_id = asked;
