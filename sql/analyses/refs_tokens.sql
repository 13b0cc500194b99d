-- The tokens that some states have seen, of those whose activations could be kept: a conversation's own.
--
-- Up to the state's own token; of a snapshot up to the last token of its message, since what a template adds
-- behind it there is not in the conversation. References and examples have none: only their states are kept.
-- @param refs a list of refs, as in `states_by_ref`
-- @column place 0-based place of the ref in the list
-- @column run_id id of its run
-- @column prompt_id 0-based conversation or row of a dataset
-- @column position 0-based place of the token in its sequence
-- @column token text of the token
-- @column message_index message that it belongs to; NULL for the generation prompt and what the tokenizer adds
-- @example select place, count(*) from tokens_by_ref(['latest', 'latest:0:final']) group by place
CREATE OR REPLACE MACRO tokens_by_ref(refs) AS TABLE
WITH ends AS (
  SELECT a.place, a.run_id, coalesce(a.prompt, p.prompt_id) AS prompt_id,
         CASE a.kind WHEN 'token' THEN a.number WHEN 'snapshot' THEN m.last_position
                     WHEN 'row' THEN q.position ELSE s.position END AS last
  FROM _refs_of(refs) AS a
  LEFT JOIN prompts AS p ON p.run_id = a.run_id AND p.row_id = a.row_id
  LEFT JOIN (SELECT c.run_id, c.prompt_id, c.selector, max(c.position) AS position FROM positions AS c
             GROUP BY c.run_id, c.prompt_id, c.selector) AS q
    ON q.run_id = a.run_id AND q.prompt_id = p.prompt_id
   AND q.selector = CASE a.selector WHEN 'mean' THEN 'last' ELSE a.selector END
  LEFT JOIN messages AS m ON m.run_id = a.run_id AND m.prompt_id = a.prompt AND m.message_index = a.number
  LEFT JOIN state_tokens AS s ON s.run_id = a.run_id AND s.prompt_id = a.prompt AND s.state = a.kind
                             AND a.kind IN ('initial', 'final')
)
SELECT e.place, t.run_id, t.prompt_id, t.position, t.token, t.message_index
FROM ends AS e JOIN tokens AS t ON t.run_id = e.run_id AND t.prompt_id = e.prompt_id AND t.position <= e.last;

-- The tokens of every two states, paired.
--
-- - `prefix`: those of the common beginning of both sequences
-- - `message`: within each message that both have, those of its common beginning and of its common end; what
--   belongs to no message makes a part of its own
-- - `last`: the last token of each, whatever they are
--
-- Compared by their text, since models may number the same tokens differently. Tokens in between that happen to be
-- alike are not paired, nor is a token paired twice.
-- @param refs a list of refs, as in `states_by_ref`
-- @param alignment prefix, message or last
-- @column place_a 0-based place of the first ref in the list
-- @column place_b likewise of the second, which is later
-- @column pair 0-based number of the pair of tokens, in the order of the first's
-- @column pairs how many there are of these two
-- @column position_a 0-based place of the token in the first's sequence
-- @column position_b its place in the second's
-- @column token_a text of the first's token
-- @column token_b text of the second's; another only where `last` pairs them
-- @column message_index message that the first's belongs to; NULL for the generation prompt
-- @example select pair, token_a, position_a, position_b from tokens_aligned(['latest', 'another_run'], 'message')
CREATE OR REPLACE MACRO tokens_aligned(refs, alignment) AS TABLE
WITH counted AS MATERIALIZED (
  SELECT place, part, position, token, message_index,
         row_number() OVER (PARTITION BY place, part ORDER BY position) AS from_start,
         row_number() OVER (PARTITION BY place, part ORDER BY position DESC) AS from_end
  FROM (SELECT t.place, t.position, t.token, t.message_index,
               CASE alignment WHEN 'message' THEN coalesce(t.message_index, -1)
                              WHEN 'prefix' THEN 0 WHEN 'last' THEN 0
                              ELSE error('''' || alignment
                                         || ''' is no alignment; there are prefix, message and last') END AS part
        FROM tokens_by_ref(refs) AS t)
), starts AS (
  SELECT a.place AS place_a, b.place AS place_b, a.part, a.position AS position_a, b.position AS position_b,
         a.token AS token_a, b.token AS token_b, a.message_index, a.from_start,
         bool_and(coalesce(a.token = b.token, false)) OVER (
           PARTITION BY a.place, b.place, a.part ORDER BY a.from_start) AS alike
  FROM counted AS a JOIN counted AS b ON b.part = a.part AND b.from_start = a.from_start AND b.place > a.place
  WHERE alignment <> 'last'
), lengths AS (
  SELECT place_a, place_b, part, max(from_start) AS tokens FROM starts WHERE alike GROUP BY place_a, place_b, part
), ends AS (
  SELECT a.place AS place_a, b.place AS place_b, a.part, a.position AS position_a, b.position AS position_b,
         a.token AS token_a, b.token AS token_b, a.message_index, a.from_end,
         least(a.from_start, b.from_start) AS before,
         bool_and(coalesce(a.token = b.token, false)) OVER (PARTITION BY a.place, b.place, a.part ORDER BY a.from_end)
           AS alike
  FROM counted AS a JOIN counted AS b ON b.part = a.part AND b.from_end = a.from_end AND b.place > a.place
  WHERE alignment <> 'prefix'
), aligned AS (
  SELECT place_a, place_b, position_a, position_b, token_a, token_b, message_index FROM starts WHERE alike
  UNION ALL
  SELECT e.place_a, e.place_b, e.position_a, e.position_b, e.token_a, e.token_b, e.message_index
  FROM ends AS e
  LEFT JOIN lengths AS l ON l.place_a = e.place_a AND l.place_b = e.place_b AND l.part = e.part
  WHERE CASE alignment WHEN 'last' THEN e.from_end = 1 ELSE e.alike AND e.before > coalesce(l.tokens, 0) END
)
SELECT c.place_a, c.place_b,
       row_number() OVER (PARTITION BY c.place_a, c.place_b ORDER BY c.position_a) - 1 AS pair,
       count(*) OVER (PARTITION BY c.place_a, c.place_b) AS pairs,
       c.position_a, c.position_b, c.token_a, c.token_b, c.message_index
FROM aligned AS c
ORDER BY c.place_a, c.place_b, c.position_a;

-- The vectors of every two states' aligned tokens, at the positions whose activations were kept.
--
-- Of many pairs of tokens `at_most` are taken, evenly spread. Name a layer where one is enough: no other is opened.
-- @param refs a list of refs, as in `states_by_ref`
-- @param alignment prefix, message or last, as in `tokens_aligned`
-- @param site a site of `activations`, such as hidden_out
-- @param at_most how many pairs of tokens of two states
-- @column place_a 0-based place of the first ref in the list
-- @column place_b likewise of the second
-- @column pair 0-based number of the pair, among those that were kept
-- @column pairs how many were kept
-- @column position_a place of the token in the first's sequence
-- @column position_b place in the second's
-- @column token_a text of the first's token
-- @column token_b text of the second's
-- @column layer 0-based decoder block
-- @column vector_a the first's activation
-- @column vector_b the second's
-- @example
-- select pair, layer, cosine(vector_a, vector_b)
-- from _aligned_vectors(['latest', 'another_run'], 'message', 'hidden_out', 100)
CREATE OR REPLACE MACRO _aligned_vectors(refs, alignment, site, at_most) AS TABLE
WITH asked AS MATERIALIZED (
  SELECT t.place, t.run_id, t.prompt_id, t.position FROM tokens_by_ref(refs) AS t
), kept AS MATERIALIZED (
  SELECT a.place, a.position FROM asked AS a
  WHERE EXISTS (SELECT 1 FROM positions AS p WHERE p.run_id = a.run_id AND p.prompt_id = a.prompt_id
                AND p.position = a.position)
     OR NOT EXISTS (SELECT 1 FROM positions AS p WHERE p.run_id = a.run_id)
), numbered AS (
  SELECT t.*, row_number() OVER (PARTITION BY t.place_a, t.place_b ORDER BY t.position_a) - 1 AS place,
         count(*) OVER (PARTITION BY t.place_a, t.place_b) AS n
  FROM tokens_aligned(refs, alignment) AS t
  JOIN kept AS x ON x.place = t.place_a AND x.position = t.position_a
  JOIN kept AS y ON y.place = t.place_b AND y.position = t.position_b
), chosen AS MATERIALIZED (
  SELECT n.*, a.run_id AS run_a, a.prompt_id AS prompt_a, b.run_id AS run_b, b.prompt_id AS prompt_b
  FROM numbered AS n
  JOIN (SELECT DISTINCT place, run_id, prompt_id FROM asked) AS a ON a.place = n.place_a
  JOIN (SELECT DISTINCT place, run_id, prompt_id FROM asked) AS b ON b.place = n.place_b
  WHERE n.place % greatest(1, ceil(n.n / at_most)) = 0
), vectors AS MATERIALIZED (
  SELECT t.run_id, t.prompt_id, t.position, t.layer, t.vector
  FROM tensor_of([_ref_run(each_ref) FOR each_ref IN refs], site) AS t
  SEMI JOIN (SELECT run_a AS run_id, prompt_a AS prompt_id, position_a AS position FROM chosen
             UNION SELECT run_b, prompt_b, position_b FROM chosen) AS c
    ON c.run_id = t.run_id AND c.prompt_id = t.prompt_id AND c.position = t.position
), firsts AS (  -- numbered, so that no layer's vectors are joined with each other before a pair is looked at
  SELECT c.*, v.layer, v.vector, row_number() OVER () AS id
  FROM chosen AS c
  JOIN vectors AS v ON v.run_id = c.run_a AND v.prompt_id = c.prompt_a AND v.position = c.position_a
)
SELECT f.place_a, f.place_b, f.place AS pair, f.n AS pairs, f.position_a, f.position_b, f.token_a, f.token_b,
       f.layer, f.vector AS vector_a, v.vector AS vector_b
FROM firsts AS f
JOIN vectors AS v
  ON v.run_id = f.run_b AND v.prompt_id = f.prompt_b AND v.position = f.position_b AND v.layer = f.layer
WHERE f.id > 0;

-- Two states' aligned tokens against each other, layer by layer.
-- @param refs a list of two refs, as in `states_by_ref`; of more, every two
-- @param alignment prefix, message or last, as in `tokens_aligned`
-- @param site a site of `activations`, such as hidden_out
-- @param at_most how many pairs of tokens of two states, evenly spread; give it by name
-- @column place_a 0-based place of the first ref in the list
-- @column place_b likewise of the second
-- @column pair 0-based number of the pair of tokens, among those whose activations were kept
-- @column pairs how many were kept; pairs that are left out of many have no rows
-- @column position_a place of the token in the first's sequence
-- @column position_b place in the second's
-- @column token_a text of the first's token
-- @column token_b text of the second's
-- @column layer 0-based decoder block
-- @column cosine cosine of the two activations; NULL where one is all zeros, and where they are not equally wide
-- @column mae mean absolute difference of the two; NULL where they are not equally wide
-- @example
-- select layer, avg(cosine) from tokens_by_pair(['latest', 'another_run'], 'message', 'hidden_out') group by layer
CREATE OR REPLACE MACRO tokens_by_pair(refs, alignment, site, at_most := 160) AS TABLE
SELECT v.place_a, v.place_b, v.pair, v.pairs, v.position_a, v.position_b, v.token_a, v.token_b, v.layer,
       CASE WHEN len(v.vector_a) = len(v.vector_b) THEN cosine(v.vector_a, v.vector_b) END AS cosine,
       CASE WHEN len(v.vector_a) = len(v.vector_b) THEN mae(v.vector_a, v.vector_b) END AS mae
FROM _aligned_vectors(refs, alignment, site, at_most) AS v
ORDER BY v.place_a, v.place_b, v.pair, v.layer;

-- Linear centred kernel alignment of every two states' aligned tokens, between their layers: what `linear_cka` tells
-- of whole runs.
--
-- `cka` is the estimator without bias, whose expectation is 0 for layers that have nothing to do with each other;
-- `cka_biased` is the plain one, which few tokens of wide vectors carry towards 1 whatever they hold. The widths may
-- differ. No rows where fewer than 10 tokens are aligned.
-- @param refs a list of refs, as in `states_by_ref`
-- @param alignment prefix, message or last, as in `tokens_aligned`
-- @param site a site of `activations`, such as hidden_out
-- @param layer 0-based decoder block of both; NULL for every two; give it by name
-- @param at_most how many pairs of tokens of two states, evenly spread; give it by name
-- @column place_a 0-based place of the first ref in the list
-- @column place_b likewise of the second, which is later
-- @column layer_a 0-based decoder block of the first
-- @column layer_b 0-based decoder block of the second
-- @column positions number of pairs of tokens used
-- @column cka alignment, estimated without bias; NULL where one layer's vectors are all the same
-- @column cka_biased alignment in 0 … 1 of just these tokens; NULL likewise
-- @example
-- select layer_a, cka from cka_by_ref(['latest', 'another_run'], 'message', 'hidden_out') where layer_a = layer_b
CREATE OR REPLACE MACRO cka_by_ref(refs, alignment, site, layer := NULL, at_most := 64) AS TABLE
WITH points AS MATERIALIZED (
  SELECT v.place_a AS pa, v.place_b AS pb, v.pair, v.layer AS at_layer,
         count(*) OVER (PARTITION BY v.place_a, v.place_b, v.layer) AS n,
         unnest([{'side': 'a', 'vector': v.vector_a::DOUBLE[]}, {'side': 'b', 'vector': v.vector_b::DOUBLE[]}]) AS own
  FROM _aligned_vectors(refs, alignment, site, at_most) AS v
  WHERE layer IS NULL OR v.layer = layer
), gram AS (
  SELECT p.pa, p.pb, p.own.side AS side, p.at_layer, p.pair AS i, q.pair AS j, p.n,
         list_inner_product(p.own.vector, q.own.vector) AS x
  FROM points AS p JOIN points AS q
    ON q.pa = p.pa AND q.pb = p.pb AND q.own.side = p.own.side AND q.at_layer = p.at_layer
  WHERE p.n >= 10
), centred AS (  -- doubly centred; and without the diagonal, so that products have no bias (U-centred)
  SELECT pa, pb, side, at_layer, i, j, n,
         x - avg(x) OVER in_row - avg(x) OVER in_column + avg(x) OVER whole AS x,
         CASE WHEN i = j THEN 0
              ELSE x - sum(x) FILTER (i <> j) OVER in_row / (n - 2) - sum(x) FILTER (i <> j) OVER in_column / (n - 2)
                     + sum(x) FILTER (i <> j) OVER whole / ((n - 1) * (n - 2)) END AS u
  FROM gram
  WINDOW in_row AS (PARTITION BY pa, pb, side, at_layer, i), in_column AS (PARTITION BY pa, pb, side, at_layer, j),
         whole AS (PARTITION BY pa, pb, side, at_layer)
), flat AS MATERIALIZED (
  SELECT pa, pb, side, at_layer, any_value(n) AS n, list(x ORDER BY i, j) AS x, list(u ORDER BY i, j) AS u
  FROM centred GROUP BY ALL
), scored AS (
  SELECT a.pa, a.pb, a.at_layer AS la, b.at_layer AS lb, a.n,
         list_inner_product(a.u, b.u)
           / nullif(sqrt(list_inner_product(a.u, a.u) * list_inner_product(b.u, b.u)), 0) AS unbiased,
         list_inner_product(a.x, b.x)
           / nullif(sqrt(list_inner_product(a.x, a.x) * list_inner_product(b.x, b.x)), 0) AS plain
  FROM flat AS a JOIN flat AS b ON b.pa = a.pa AND b.pb = a.pb
  WHERE a.side = 'a' AND b.side = 'b'
)
SELECT s.pa AS place_a, s.pb AS place_b, s.la AS layer_a, s.lb AS layer_b, s.n AS positions,
       _clamp(s.unbiased) AS cka, _clamp(s.plain) AS cka_biased
FROM scored AS s
ORDER BY s.pa, s.pb, s.la, s.lb;
