-- The logit lens of every run that `alab logit-lens` was run on: what each layer would say next.
--
-- One row per token, layer and rank. A new call of `alab logit-lens` replaces the rows of its run and site.
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column position 0-based place of the token in the whole sequence
-- @column layer 0-based decoder block
-- @column rank 0 for the token that the layer finds most likely
-- @column token_id id in the tokenizer's vocabulary
-- @column token text of the token
-- @column logprob log-probability of the token, nats
-- @column kl KL(layer ‖ final): how far the layer's distribution is from the last layer's, nats; NULL where the last
--   layer was not captured
-- @column site hidden_out, or contributions for the running sum of what the sub-layers add
-- @column next_token_id the token that follows in the conversation; at a step's last position the one generated
-- @column next_rank rank of that token in the layer's distribution, from 0
-- @column next_logprob log-probability of that token in the layer's distribution, nats
-- @example select layer, token, logprob, kl from logit_lens where run_id = 'a_run' and step = 0 and rank = 0
CREATE OR REPLACE VIEW logit_lens AS
SELECT f.run AS run_id, f.prompt_id, f.step, f.position, f.layer, f.rank, f.token_id, f.token, f.logprob, f.kl,
       f.site, f.next_token_id, f.next_rank, f.next_logprob
FROM _rows_of(_files_of_all('logit_lens', '/*.parquet')) AS f
WHERE _has('logit_lens', f.run);
