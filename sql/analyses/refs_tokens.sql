-- The tokens that some states have seen, of those whose activations could be kept: a conversation's own.
--
-- Up to the state's own token; of a snapshot up to the last token of its message, since what a template adds behind it
-- there is not in the conversation. References and examples have none: only their states are kept.
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
-- - `message`: within each message that both have, those of its common beginning and of its common end; what belongs to
--   no message makes a part of its own
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
               CASE alignment WHEN 'message' THEN coalesce(t.message_index, -1) WHEN 'prefix' THEN 0 WHEN 'last' THEN 0
                              ELSE error('''' || alignment || ''' is no alignment; there are prefix, message and last')
                              END AS part
        FROM tokens_by_ref(refs) AS t)
), starts AS (
  SELECT a.place AS place_a, b.place AS place_b, a.part, a.position AS position_a, b.position AS position_b,
         a.token AS token_a, b.token AS token_b, a.message_index, a.from_start,
         bool_and(coalesce(a.token = b.token, false)) OVER (PARTITION BY a.place, b.place, a.part ORDER BY a.from_start)
           AS alike
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
  FROM tensor_of([_ref_run(ref) FOR ref IN refs], site) AS t
  SEMI JOIN (SELECT run_a AS run_id, prompt_a AS prompt_id, position_a AS position FROM chosen
             UNION SELECT run_b, prompt_b, position_b FROM chosen) AS c
    ON c.run_id = t.run_id AND c.prompt_id = t.prompt_id AND c.position = t.position
)
-- One condition for each side: else the vectors of a layer are joined with each other before any pair is looked at.
SELECT c.place_a, c.place_b, c.place AS pair, c.n AS pairs, c.position_a, c.position_b, c.token_a, c.token_b,
       a.layer, a.vector AS vector_a, b.vector AS vector_b
FROM chosen AS c
JOIN vectors AS a ON (a.run_id, a.prompt_id, a.position) = (c.run_a, c.prompt_a, c.position_a)
JOIN vectors AS b
  ON concat_ws('|', b.run_id, b.prompt_id, b.position, b.layer)
     = concat_ws('|', c.run_b, c.prompt_b, c.position_b, a.layer);

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
-- @column cosine cosine of the two activations; NULL where one is all zeros
-- @column mae mean absolute difference of the two
-- @example select layer, avg(cosine) from tokens_by_pair(['latest', 'another_run'], 'message', 'hidden_out') group by layer
CREATE OR REPLACE MACRO tokens_by_pair(refs, alignment, site, at_most := 160) AS TABLE
WITH points AS MATERIALIZED (
  SELECT row_number() OVER () AS id, v.* FROM _aligned_vectors(refs, alignment, site, at_most) AS v
), distances AS (
  SELECT id, sum(_distance_of_eights(x, y)) AS distance
  FROM (SELECT id, unnest(_eights(vector_a)) AS x, unnest(_eights(vector_b)) AS y FROM points
        WHERE len(vector_a) = len(vector_b)
        UNION ALL SELECT NULL, NULL, NULL WHERE false)  -- the empty half: see compare_states
  GROUP BY id
)
SELECT p.place_a, p.place_b, p.pair, p.pairs, p.position_a, p.position_b, p.token_a, p.token_b, p.layer,
       cosine(p.vector_a, p.vector_b) AS cosine, d.distance / len(p.vector_a) AS mae
FROM points AS p JOIN distances AS d ON d.id = p.id
ORDER BY p.place_a, p.place_b, p.pair, p.layer;
