-- The tokens that two runs share, paired: those of the common beginning and of the common end of a prompt, and likewise
-- of a reply.
--
-- Compared by their text, since models may number the same tokens differently. Tokens in between that happen to be
-- alike are not paired, nor is a token paired twice.
-- @param run_a a run id or `latest`
-- @param run_b a run id or `latest`
-- @column prompt_id 0-based conversation, the same in both runs
-- @column position_a 0-based place of the token in the first run's sequence
-- @column position_b its place in the second run's
-- @column token text of the token
-- @column is_generated true for tokens of the reply
-- @example select count(*), min(position_a) from shared_tokens('latest', 'another_run')
CREATE OR REPLACE MACRO shared_tokens(run_a, run_b) AS TABLE
WITH sides AS (
  SELECT 'a' AS side, t.prompt_id, t.position, t.token, coalesce(t.is_generated, false) AS reply
  FROM _tokens_of(run_a) AS t
  UNION ALL
  SELECT 'b', t.prompt_id, t.position, t.token, coalesce(t.is_generated, false) FROM _tokens_of(run_b) AS t
), counted AS MATERIALIZED (
  SELECT side, prompt_id, reply, s.position, token,
         row_number() OVER (PARTITION BY side, prompt_id, reply ORDER BY s.position) AS from_start,
         row_number() OVER (PARTITION BY side, prompt_id, reply ORDER BY s.position DESC) AS from_end
  FROM sides AS s
), starts AS (
  SELECT a.prompt_id, a.reply, a.position AS position_a, b.position AS position_b, a.token, a.from_start,
         bool_and(coalesce(a.token = b.token, false)) OVER (PARTITION BY a.prompt_id, a.reply ORDER BY a.from_start)
           AS alike
  FROM counted AS a JOIN counted AS b
    ON b.prompt_id = a.prompt_id AND b.reply = a.reply AND b.from_start = a.from_start
  WHERE a.side = 'a' AND b.side = 'b'
), lengths AS (
  SELECT prompt_id, reply, max(from_start) FILTER (alike) AS tokens FROM starts GROUP BY prompt_id, reply
), ends AS (
  SELECT a.prompt_id, a.reply, a.position AS position_a, b.position AS position_b, a.token,
         a.from_start AS start_a, b.from_start AS start_b,
         bool_and(coalesce(a.token = b.token, false)) OVER (PARTITION BY a.prompt_id, a.reply ORDER BY a.from_end)
           AS alike
  FROM counted AS a JOIN counted AS b
    ON b.prompt_id = a.prompt_id AND b.reply = a.reply AND b.from_end = a.from_end
  WHERE a.side = 'a' AND b.side = 'b'
)
SELECT prompt_id, position_a, position_b, token, reply AS is_generated FROM starts WHERE alike
UNION ALL
SELECT e.prompt_id, e.position_a, e.position_b, e.token, e.reply
FROM ends AS e JOIN lengths AS l ON l.prompt_id = e.prompt_id AND l.reply = e.reply
WHERE e.alike AND least(e.start_a, e.start_b) > coalesce(l.tokens, 0)
ORDER BY prompt_id, position_a;

-- Linear centred kernel alignment between the layers of two runs over the tokens that both have, as `shared_tokens`
-- pairs them.
--
-- 1 where two layers hold the same geometry of tokens up to rotation and scale, about 0 where they share none; the
-- widths may differ. `cka` is the estimator without bias, whose expectation is 0 for layers that have nothing to do
-- with each other, so it may fall a little below. `cka_biased` is the plain one, which few tokens of wide vectors
-- carry towards 1 whatever they hold; it is for comparison with what is published. No rows where the runs share fewer
-- than `at_least` tokens. Tokens of a common beginning have equal states in two runs of the same model. The cost grows
-- with the square of the tokens.
-- @param run_a a run id or `latest`
-- @param run_b a run id or `latest`
-- @param site a site of `activations`, such as hidden_out
-- @param positions how many of the shared tokens to use at most, evenly spread; give it by name
-- @param at_least how many there must be, 4 or more; give it by name
-- @column layer_a 0-based decoder block of the first run
-- @column layer_b 0-based decoder block of the second run
-- @column positions number of pairs of tokens used
-- @column cka alignment, estimated without bias; NULL where one layer's vectors are all the same
-- @column cka_biased alignment in 0 … 1 of just these tokens; NULL likewise
-- @example select * from linear_cka('latest', 'latest', 'hidden_out') where layer_a = layer_b
CREATE OR REPLACE MACRO linear_cka(run_a, run_b, site, positions := 100, at_least := 10) AS TABLE
WITH vectors AS MATERIALIZED (
  SELECT 'a' AS side, t.prompt_id, t.position, t.layer, t.vector::DOUBLE[] AS vector FROM tensor_of(run_a, site) AS t
  UNION ALL
  SELECT 'b', t.prompt_id, t.position, t.layer, t.vector::DOUBLE[] FROM tensor_of(run_b, site) AS t
), captured AS (
  SELECT DISTINCT side, prompt_id, v.position FROM vectors AS v
), shared AS (
  SELECT s.prompt_id, s.position_a, s.position_b,
         row_number() OVER (ORDER BY s.prompt_id, s.position_a) - 1 AS place, count(*) OVER () AS n
  FROM shared_tokens(run_a, run_b) AS s
  JOIN captured AS a ON a.side = 'a' AND a.prompt_id = s.prompt_id AND a.position = s.position_a
  JOIN captured AS b ON b.side = 'b' AND b.prompt_id = s.prompt_id AND b.position = s.position_b
), chosen AS (
  SELECT *, count(*) OVER () AS used FROM shared WHERE place % ceil(n / positions) = 0
), points AS MATERIALIZED (
  SELECT side, layer, place, used, vector
  FROM vectors AS v JOIN chosen AS c
    ON c.prompt_id = v.prompt_id AND v.position = CASE WHEN side = 'a' THEN c.position_a ELSE c.position_b END
  WHERE used >= greatest(4, at_least)
), gram AS (
  SELECT p.side, p.layer, p.place AS i, q.place AS j, p.used AS n, list_inner_product(p.vector, q.vector) AS x
  FROM points AS p JOIN points AS q ON q.side = p.side AND q.layer = p.layer
), centered AS MATERIALIZED (  -- doubly centred; and without the diagonal, so that products have no bias (U-centred)
  SELECT side, layer, i, j, n,
         x - avg(x) OVER (PARTITION BY side, layer, i) - avg(x) OVER (PARTITION BY side, layer, j)
           + avg(x) OVER (PARTITION BY side, layer) AS x,
         CASE WHEN i = j THEN 0
              ELSE x - sum(x) FILTER (i <> j) OVER (PARTITION BY side, layer, i) / (n - 2)
                     - sum(x) FILTER (i <> j) OVER (PARTITION BY side, layer, j) / (n - 2)
                     + sum(x) FILTER (i <> j) OVER (PARTITION BY side, layer) / ((n - 1) * (n - 2)) END AS u
  FROM gram
), own AS (
  SELECT side, layer, sqrt(sum(x * x)) AS size, sqrt(sum(u * u)) AS unbiased FROM centered GROUP BY side, layer
), joint AS (
  SELECT a.layer AS layer_a, b.layer AS layer_b, sum(a.x * b.x) AS x, sum(a.u * b.u) AS u, any_value(a.n) AS n
  FROM centered AS a JOIN centered AS b ON a.i = b.i AND a.j = b.j
  WHERE a.side = 'a' AND b.side = 'b'
  GROUP BY a.layer, b.layer
), scored AS (
  SELECT layer_a, layer_b, n, u / nullif(a.unbiased * b.unbiased, 0) AS unbiased,
         x / nullif(a.size * b.size, 0) AS plain
  FROM joint
  JOIN own AS a ON a.side = 'a' AND a.layer = layer_a
  JOIN own AS b ON b.side = 'b' AND b.layer = layer_b
)
SELECT layer_a, layer_b, n AS positions, _clamp(unbiased) AS cka, _clamp(plain) AS cka_biased
FROM scored
ORDER BY layer_a, layer_b;
