-- Towards which reference each state leans, and in how many layers that one leads.
--
-- The first and the second of `reference_shift`, or of `conversation_shift`, at one site. A lead in most layers can be
-- relied on; a label that leads in half of them is hardly ahead. `leaning` says how sure the margin is where labels have
-- several examples. No rows for a single reference, nor for a single state, beside which nothing is usual.
-- @param run_id a run id, `latest`, or a list of these
-- @param site hidden_in, hidden_out, attn_out or mlp_down_out; give it by name
-- @param over conversation: the state after each message, beside those after the other messages of the conversation;
--   conversations: the state before the reply of each conversation, beside those of all others of these runs; give it by
--   name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the state has seen
-- @column role role of that message
-- @column is_generated true for the state after the generated reply
-- @column label reference that the state leans towards most
-- @column shift cosine with it beyond the usual
-- @column second reference that comes next
-- @column margin shift of the first less that of the second
-- @column layers_led layers in which the first leads
-- @column layers layers compared
-- @column states states that the usual is the mean of
-- @column n examples of the reference; one can't tell the label from the wording of its example
-- @example select message_index, label, round(100 * margin, 2) as hundredths, layers_led from leaning_layers('latest')
-- @example select label, count(*) from leaning_layers('latest', over := 'conversations') group by label
CREATE OR REPLACE MACRO leaning_layers(run_id, site := 'hidden_out', over := 'conversation') AS TABLE
WITH cosines AS MATERIALIZED (
  FROM _leaning_cosines(run_id, site, over)
), usual AS (
  SELECT group_id, label, layer, avg(cosine) AS usual, count(*) AS states FROM cosines GROUP BY ALL
), beyond AS MATERIALIZED (
  SELECT c.*, u.states, c.cosine - u.usual AS beyond
  FROM cosines AS c JOIN usual AS u ON u.group_id = c.group_id AND u.label = c.label AND u.layer = c.layer
), leaders AS (
  SELECT b.run_id, prompt_id, message_index, layer, max_by(label, (beyond, label)) AS leader
  FROM beyond AS b WHERE beyond IS NOT NULL GROUP BY b.run_id, prompt_id, message_index, layer
), means AS (
  SELECT b.run_id, prompt_id, message_index, role, is_generated, label, avg(beyond) AS beyond, max(states) AS states
  FROM beyond AS b GROUP BY b.run_id, prompt_id, message_index, role, is_generated, label
), firsts AS (
  SELECT m.run_id, prompt_id, message_index, role, is_generated, max(states) AS states, count(*) AS labels,
         avg(beyond) AS common, max({'beyond': beyond, 'label': label}, 2) AS ranked
  FROM means AS m WHERE beyond IS NOT NULL
  GROUP BY m.run_id, prompt_id, message_index, role, is_generated
)
SELECT f.run_id, f.prompt_id, f.message_index, any_value(f.role) AS role, any_value(f.is_generated) AS is_generated,
       any_value(ranked[1].label) AS label, any_value(ranked[1].beyond - common) AS shift,
       any_value(ranked[2].label) AS second, any_value(ranked[1].beyond - ranked[2].beyond) AS margin,
       count(*) FILTER (l.leader = ranked[1].label) AS layers_led, count(*) AS layers,
       any_value(f.states) AS states, any_value(coalesce(r.n, 1)) AS n
FROM firsts AS f
JOIN leaders AS l ON l.run_id = f.run_id AND l.prompt_id = f.prompt_id AND l.message_index = f.message_index
LEFT JOIN reference_states AS r ON r.run_id = f.run_id AND r.label = f.ranked[1].label
WHERE f.labels > 1 AND f.states > 1
GROUP BY f.run_id, f.prompt_id, f.message_index
ORDER BY f.run_id, f.prompt_id, f.message_index;

-- The cosines that `leaning_layers` and `conversation_shift` weigh.
-- @param run_id a run id, `latest`, or a list of these
-- @param site hidden_in, hidden_out, attn_out or mlp_down_out
-- @param over conversation or conversations, as in `leaning_layers`
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column message_index last message that the state has seen
-- @column role role of that message
-- @column is_generated true for the state after the generated reply
-- @column label label of the reference
-- @column layer 0-based decoder block
-- @column cosine cosine of the state and the reference
-- @column group_id what the usual is a mean over
-- @example from _leaning_cosines('latest', 'hidden_out', 'conversation')
CREATE OR REPLACE MACRO _leaning_cosines(run_id, site, over) AS TABLE
SELECT c.run_id, c.prompt_id, c.message_index, c.role, c.is_generated, c.label, c.layer, c.cosine,
       CASE over WHEN 'conversation' THEN c.run_id || ' ' || c.prompt_id ELSE '' END AS group_id
FROM snapshot_cosine(run_id) AS c
JOIN (SELECT s.run_id, s.prompt_id, max(s.message_index) AS message_index FROM snapshots AS s
      WHERE NOT s.is_generated GROUP BY s.run_id, s.prompt_id) AS e
  ON e.run_id = c.run_id AND e.prompt_id = c.prompt_id
WHERE c.site = site AND (over = 'conversation' OR c.message_index = e.message_index);

-- How the state before the reply leans in each conversation, beside all other conversations of some runs.
--
-- Like `reference_shift`, with conversations in place of messages: the cosine with a reference beyond what is usual for
-- that conversation and for that reference, averaged over layers. For many short conversations, and for runs whose
-- prompts differ.
-- @param run_id a run id, `latest`, or a list of these
-- @param site hidden_in, hidden_out, attn_out or mlp_down_out; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column label label of the reference
-- @column shift cosine beyond the usual; rows and columns add up to zero
-- @example pivot (from conversation_shift('latest')) on label using first(shift) group by prompt_id
CREATE OR REPLACE MACRO conversation_shift(run_id, site := 'hidden_out') AS TABLE
WITH means AS (
  SELECT c.run_id, c.prompt_id, c.label, avg(c.cosine) AS cosine
  FROM _leaning_cosines(run_id, site, 'conversations') AS c GROUP BY ALL
)
SELECT m.run_id, m.prompt_id, m.label,
       cosine - avg(cosine) OVER (PARTITION BY m.run_id, m.prompt_id) - avg(cosine) OVER (PARTITION BY m.label)
              + avg(cosine) OVER () AS shift
FROM means AS m
ORDER BY m.run_id, m.prompt_id, m.label;

-- Which layers tell the references apart: at each site the layer where they lie furthest apart, and the layers around
-- it in which they lie at least half as far apart.
--
-- The distance is that of `reference_separation`, which has it for every layer.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column labels number of references
-- @column peak_layer layer where the references lie furthest apart
-- @column peak distance there: 1 less the mean cosine over the pairs of references
-- @column first_layer first of the layers around it that reach half of that
-- @column last_layer last of them
-- @column least least distance of any layer
-- @column layers layers compared
-- @example select site, peak_layer, first_layer, last_layer from separating_layers('latest')
CREATE OR REPLACE MACRO separating_layers(run_id) AS TABLE
WITH apart AS MATERIALIZED (
  SELECT c.a.run_id AS run_id, c.a.site AS site, c.a.layer AS layer, avg(1 - c.cosine) AS distance,
         count(DISTINCT c.a.label) AS labels
  FROM _compare_states(run_id, 'reference') AS c
  WHERE c.a.state = 'reference' AND c.a.label <> c.b.label
  GROUP BY ALL
), peaks AS (
  SELECT a.run_id, a.site, max(labels) AS labels, max(distance) AS peak, min(distance) AS least, count(*) AS layers,
         max_by(layer, (distance, -layer)) AS peak_layer
  FROM apart AS a WHERE distance IS NOT NULL GROUP BY a.run_id, a.site
), walls AS (  -- the nearest layers on both sides that fall below half
  SELECT p.run_id, p.site, max(layer) FILTER (layer < peak_layer AND distance < peak / 2) AS below,
         min(layer) FILTER (layer > peak_layer AND distance < peak / 2) AS above
  FROM peaks AS p JOIN apart AS a ON a.run_id = p.run_id AND a.site = p.site
  GROUP BY p.run_id, p.site
)
SELECT p.run_id, p.site, p.labels, p.peak_layer, p.peak,
       min(a.layer) AS first_layer, max(a.layer) AS last_layer, p.least, p.layers
FROM peaks AS p
JOIN walls AS w ON w.run_id = p.run_id AND w.site = p.site
JOIN apart AS a ON a.run_id = p.run_id AND a.site = p.site AND a.layer > coalesce(w.below, -1)
               AND a.layer < coalesce(w.above, 2147483647)
GROUP BY ALL
ORDER BY p.run_id, p.site;

-- How far the reply moved the state, like with like, beside how far the messages before it did.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column cosine mean over the layers of the cosine before and after the reply
-- @column least least of these cosines
-- @column least_layer layer of that
-- @column layers layers compared
-- @column before messages before the reply, of which the move is known
-- @column cosine_before mean cosine before and after one of those; NULL where there are none
-- @example select site, cosine, least_layer, cosine_before from reply_summary('latest')
CREATE OR REPLACE MACRO reply_summary(run_id) AS TABLE
SELECT t.run_id, t.prompt_id, t.site, avg(t.cosine) FILTER (t.is_generated) AS cosine,
       min(t.cosine) FILTER (t.is_generated) AS least,
       min_by(t.layer, (t.cosine, t.layer)) FILTER (t.is_generated AND t.cosine IS NOT NULL) AS least_layer,
       count(*) FILTER (t.is_generated) AS layers,
       count(DISTINCT t.message_index) FILTER (NOT t.is_generated) AS before,
       avg(t.cosine) FILTER (NOT t.is_generated) AS cosine_before
FROM turn_shift(run_id) AS t
GROUP BY t.run_id, t.prompt_id, t.site
HAVING count(*) FILTER (t.is_generated) > 0
ORDER BY t.run_id, t.prompt_id, t.site;

-- What can't be concluded from a run, and why: one line per reason.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column code no_references, one_reference, one_example (references with one example), cut (replies that ended at
--   `max_new_tokens`), token_kind (last tokens of prompt and reply that are of different kinds), unknown_token (states
--   whose token is not known), snapshot_tokens (snapshots that sit on different tokens), one_conversation
-- @column count how many
-- @column total out of how many
-- @example select code, count, total from caveats('latest')
CREATE OR REPLACE MACRO caveats(run_id) AS TABLE
WITH chosen AS MATERIALIZED (
  SELECT unnest(_run_ids(run_id)) AS id
), places AS MATERIALIZED (
  SELECT s.run_id, s.prompt_id, s.state, s.token, s.kind FROM state_tokens_of(run_id) AS s
), labels AS (
  SELECT r.run_id, count(*) AS total, count(*) FILTER (coalesce(r.n, 1) = 1) AS single
  FROM reference_states AS r JOIN chosen ON r.run_id = chosen.id GROUP BY r.run_id
), conversations AS (
  SELECT p.run_id, count(*) AS total, count(*) FILTER (p.n_generated > 0) AS replies,
         count(*) FILTER (p.n_generated > 0 AND p.stop_reason = 'length') AS cut
  FROM prompts AS p JOIN chosen ON p.run_id = chosen.id GROUP BY p.run_id
), ends AS (
  SELECT p.run_id, count(*) AS total, count(*) FILTER (kinds > 1) AS differ
  FROM (SELECT s.run_id, s.prompt_id, count(DISTINCT s.kind) AS kinds FROM places AS s
        WHERE s.state IN ('initial', 'final') GROUP BY s.run_id, s.prompt_id HAVING count(*) = 2) AS p
  GROUP BY p.run_id
), snapshot_tokens AS (
  SELECT s.run_id, count(*) AS total, count(*) FILTER (s.kind IS NULL) AS unknown, count(DISTINCT s.token) AS tokens
  FROM places AS s WHERE s.state = 'snapshot' GROUP BY s.run_id
)
SELECT r.run_id, r.code, r.count, r.total
FROM (
  SELECT chosen.id AS run_id, 'no_references' AS code, 0 AS count, 0 AS total, 1 AS place
  FROM chosen JOIN runs AS r ON r.run_id = chosen.id WHERE chosen.id NOT IN (SELECT l.run_id FROM labels AS l)
  UNION ALL SELECT l.run_id, 'one_reference', 1, 1, 2 FROM labels AS l WHERE l.total = 1
  UNION ALL SELECT l.run_id, 'one_example', l.single, l.total, 3 FROM labels AS l WHERE l.single > 0 AND l.total > 1
  UNION ALL SELECT c.run_id, 'cut', c.cut, c.replies, 4 FROM conversations AS c WHERE c.cut > 0
  UNION ALL SELECT e.run_id, 'token_kind', e.differ, e.total, 5 FROM ends AS e WHERE e.differ > 0
  UNION ALL SELECT t.run_id, 'unknown_token', t.unknown, t.total, 6 FROM snapshot_tokens AS t WHERE t.unknown > 0
  UNION ALL SELECT t.run_id, 'snapshot_tokens', t.tokens, t.total, 7 FROM snapshot_tokens AS t WHERE t.tokens > 1
  UNION ALL SELECT c.run_id, 'one_conversation', 1, 1, 8 FROM conversations AS c WHERE c.total = 1
) AS r
ORDER BY r.run_id, r.place;

-- What some runs were asked: each message once, with the runs that have it.
--
-- A message that is the same in all runs has one row; where runs differ there is a row for each wording.
-- @param runs a run id, `latest`, or a list of these
-- @column prompt_id 0-based conversation within the runs
-- @column message_index 0-based message within the conversation
-- @column is_generated true for the reply that the model wrote
-- @column role role of the message
-- @column content text of the message
-- @column run_ids ids of the runs that have it, oldest first
-- @column wordings different messages that stand in this place
-- @column missing how many of the runs have no message in this place
-- @example select message_index, role, len(run_ids) as runs from message_variants('latest') where wordings > 1
CREATE OR REPLACE MACRO message_variants(runs) AS TABLE
WITH asked AS MATERIALIZED (
  SELECT r.run_id AS id, r.created_at AS age
  FROM (SELECT unnest(_run_ids(runs)) AS one) AS a JOIN runs AS r ON r.run_id = a.one
), variants AS (
  SELECT m.prompt_id, m.message_index, m.is_generated, m.role, m.content,
         list(m.run_id ORDER BY asked.age, m.run_id) AS run_ids, min(asked.age) AS age
  FROM messages AS m JOIN asked ON m.run_id = asked.id
  GROUP BY m.prompt_id, m.message_index, m.is_generated, m.role, m.content
)
SELECT v.prompt_id, v.message_index, v.is_generated, v.role, v.content, v.run_ids,
       count(*) OVER (PARTITION BY v.prompt_id, v.message_index) AS wordings,
       (SELECT count(*) FROM asked) - sum(len(v.run_ids)) OVER (PARTITION BY v.prompt_id, v.message_index) AS missing
FROM variants AS v
ORDER BY v.prompt_id, v.message_index, v.age, v.run_ids[1];

-- The settings in which some runs differ, one line per run; no rows for settings that are the same in all of them.
-- @param runs a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column setting model, revision, adapter, weights, dtype, device, store_dtype, seed or generation
-- @column value its value in this run, as text; NULL where there is none
-- @example select setting, run_id, value from run_settings(['one_run', 'another_run'])
CREATE OR REPLACE MACRO run_settings(runs) AS TABLE
SELECT t.run_id, t.setting, t.value
FROM (
  SELECT r.run_id, r.created_at, s.setting, s.value, s.place,
         count(DISTINCT coalesce('=' || s.value, '')) OVER (PARTITION BY s.setting) AS values
  FROM (
    SELECT r.run_id, r.created_at, unnest([
      {'place': 1, 'setting': 'model', 'value': r.model_id}, {'place': 2, 'setting': 'revision', 'value': r.revision},
      {'place': 3, 'setting': 'adapter', 'value': r.adapter},
      {'place': 4, 'setting': 'weights', 'value': r.weights_hash},
      {'place': 5, 'setting': 'dtype', 'value': r.dtype}, {'place': 6, 'setting': 'device', 'value': r.device},
      {'place': 7, 'setting': 'store_dtype', 'value': r.store_dtype},
      {'place': 8, 'setting': 'seed', 'value': r.seed::VARCHAR},
      {'place': 9, 'setting': 'generation', 'value': json_extract_string(r.scenario_json, '$.generation')}]) AS s
    FROM runs AS r JOIN (SELECT unnest(_run_ids(runs)) AS asked) ON r.run_id = asked
  ) AS r
) AS t
WHERE t.values > 1
ORDER BY t.place, t.created_at, t.run_id;
