-- The token that each state of a run sits on.
--
-- A state tells of its token as well as of what came before it, so that two states compare best where they sit on
-- tokens of one kind. Runs of older alabs do not say where their states sit: there the initial and the final state are
-- found among the tokens of the conversation, and the tokens of snapshots and references are unknown.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references, which belong to the whole run
-- @column state initial, final, snapshot, reference or example
-- @column state_index as in the view `states`
-- @column label label of a reference or example, else NULL
-- @column n_tokens tokens that were seen, the state's own included
-- @column position 0-based place of the state's token in its own sequence
-- @column token text of the token; NULL where it is not known
-- @column role role of the message that the token belongs to; assistant for the generation prompt
-- @column is_template true for a token that the chat template adds around the content
-- @column is_generated true for a token that the model generated in this run
-- @column kind template, generated or content; NULL where it is not known
-- @example select state, token, position, kind from state_tokens_of('latest') where state in ('initial', 'final')
CREATE OR REPLACE MACRO state_tokens_of(run_id) AS TABLE
WITH asked AS MATERIALIZED (
  SELECT unnest(_run_ids(run_id)) AS id
), ends AS (  -- the last token that the prefill read, and the last that any pass read
  SELECT t.run_id, t.prompt_id, s.state, max(t.step) AS last_step, arg_max(t, t.position) AS token
  FROM tokens AS t JOIN asked ON t.run_id = asked.id CROSS JOIN (VALUES ('initial'), ('final')) AS s(state)
  WHERE CASE s.state WHEN 'initial' THEN t.step = 0 ELSE t.step IS NOT NULL END
  GROUP BY t.run_id, t.prompt_id, s.state
), places AS (
  SELECT e.run_id, e.prompt_id, e.state, e.last_step AS state_index, NULL AS label, e.token.position + 1 AS n_tokens,
         e.token.position AS position, e.token.token AS token, e.token.role AS role,
         e.token.is_template AS is_template, e.token.is_generated AS is_generated
  FROM ends AS e WHERE e.state = 'initial' OR e.last_step > 0
  UNION ALL
  SELECT s.run_id, s.prompt_id, 'snapshot', s.message_index, NULL, s.n_tokens, s.n_tokens - 1, NULL, NULL, NULL, NULL
  FROM snapshots AS s JOIN asked ON s.run_id = asked.id
  UNION ALL
  SELECT r.run_id, NULL, 'reference', r.ref_index, r.label, r.n_tokens, NULL, NULL, NULL, NULL, NULL
  FROM reference_states AS r JOIN asked ON r.run_id = asked.id
), known AS (
  SELECT k.* FROM state_tokens AS k JOIN asked ON k.run_id = asked.id
), every AS (
  SELECT k.run_id, k.prompt_id, k.state, k.state_index, k.label, k.n_tokens, k.position, k.token, k.role,
         k.is_template, k.is_generated
  FROM known AS k
  UNION ALL
  SELECT p.* FROM places AS p
  WHERE NOT EXISTS (SELECT 1 FROM known AS k WHERE k.run_id = p.run_id AND k.state = p.state
                    AND k.state_index = p.state_index AND k.prompt_id IS NOT DISTINCT FROM p.prompt_id)
)
SELECT e.*, CASE WHEN is_template THEN 'template' WHEN is_generated THEN 'generated'
                 WHEN token IS NOT NULL THEN 'content' END AS kind
FROM every AS e
ORDER BY e.run_id, e.prompt_id NULLS LAST,
         list_position(['initial', 'final', 'snapshot', 'reference', 'example'], state), state_index;

-- How far each message moved the state: the state before the message against the state after it, like with like.
--
-- Both are snapshots, at the end of the generation prompt, where the model is about to answer. For the reply these are
-- the state from which it was written, and the state after it. Reads the run's states only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index the message that lies between the two states
-- @column role role of that message
-- @column is_generated true for the reply that the model wrote in this run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select message_index, role, avg(cosine) from turn_shift('latest') where site = 'hidden_out' group by all
CREATE OR REPLACE MACRO turn_shift(run_id) AS TABLE
SELECT c.a.run_id, c.a.prompt_id, c.b.state_index AS message_index, i.role, i.is_generated, c.a.site, c.a.layer,
       c.cosine, c.mae, c.jaccard
FROM _compare_states(run_id, 'turns') AS c
JOIN snapshots_of(run_id) AS i
  ON i.run_id = c.b.run_id AND i.prompt_id = c.b.prompt_id AND i.message_index = c.b.state_index
ORDER BY c.a.run_id, c.a.prompt_id, message_index, c.a.site, c.a.layer;

-- What replying changed, like with like: the generation prompt before the reply against the one after it.
--
-- `intra_run` compares the last tokens of the prompt and of the reply instead, whatever tokens these are. No rows where
-- nothing was generated. Reads the run's states only.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select layer, cosine from reply_shift('latest') where site = 'hidden_out' order by cosine limit 3
CREATE OR REPLACE MACRO reply_shift(run_id) AS TABLE
SELECT t.run_id, t.prompt_id, t.site, t.layer, t.cosine, t.mae, t.jaccard
FROM turn_shift(run_id) AS t
WHERE t.is_generated
ORDER BY t.run_id, t.prompt_id, t.site, t.layer;
