-- The states of a run that can be compared, of those whose name or text has what is looked for.
WITH kinds AS (
  SELECT DISTINCT s.prompt_id, s.state, s.state_index, s.label FROM states_of($run) AS s WHERE s.state <> 'mean'
), named AS (
  SELECT coalesce(k.prompt_id, 1000000000) AS place, list_position(['initial', 'snapshot', 'final', 'reference', 'example'], k.state) AS kind,
         k.state_index AS number,
         CASE k.state WHEN 'reference' THEN 'reference:' || k.label WHEN 'example' THEN 'example:' || k.state_index
                      WHEN 'snapshot' THEN k.prompt_id || ':snapshot:' || k.state_index
                      ELSE k.prompt_id || ':' || k.state END AS rest,
         CASE k.state WHEN 'reference' THEN 'reference ' || k.label WHEN 'example' THEN 'example ' || k.state_index || ' of ' || k.label
                      WHEN 'snapshot' THEN 'conversation ' || k.prompt_id || ', after message ' || k.state_index
                      WHEN 'initial' THEN 'conversation ' || k.prompt_id || ', before the reply'
                      ELSE 'conversation ' || k.prompt_id || ', end of the reply' END AS name,
         CASE k.state WHEN 'snapshot' THEN m.content WHEN 'initial' THEN p.prompt_text WHEN 'final' THEN p.generated_text
                      WHEN 'reference' THEN array_to_string(e.messages ->> '$[*].content', ' · ') END AS text
  FROM kinds AS k
  LEFT JOIN messages AS m ON m.run_id = $run AND m.prompt_id = k.prompt_id AND m.message_index = k.state_index AND k.state = 'snapshot'
  LEFT JOIN prompts AS p ON p.run_id = $run AND p.prompt_id = k.prompt_id
  LEFT JOIN reference_states AS e ON e.run_id = $run AND e.label = k.label AND k.state = 'reference'
  UNION ALL
  SELECT p.prompt_id, 0, c.place,
         CASE c.selector WHEN 'last' THEN 'row:' ELSE 'row@' || c.selector || ':' END || p.row_id,
         'row ' || p.row_id || CASE c.selector WHEN 'last' THEN '' ELSE ', ' || c.selector END, p.prompt_text
  FROM prompts AS p
  JOIN (SELECT DISTINCT q.prompt_id, q.selector, CASE q.selector WHEN 'last' THEN 0 ELSE 1 END AS place
        FROM positions AS q WHERE q.run_id = $run
        UNION ALL SELECT DISTINCT s.prompt_id, 'mean', 2 FROM states_of($run) AS s WHERE s.state = 'mean') AS c
    ON c.prompt_id = p.prompt_id
  WHERE p.run_id = $run AND p.row_id IS NOT NULL
)
SELECT $run || ':' || rest AS ref, name, left(coalesce(text, ''), 120) || CASE WHEN length(text) > 120 THEN '…' ELSE '' END AS text
FROM named
WHERE contains(lower(name || ' ' || coalesce(text, '')), lower($find))
ORDER BY place, number, kind, rest
LIMIT 300
