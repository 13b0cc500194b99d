-- The state before the reply of each conversation against each reference: `conversation_shift`, in hundredths of a cosine.
SELECT c.run_id, c.prompt_id, CASE c.prompt_id WHEN 0 THEN c.run_id ELSE c.run_id || ' · ' || c.prompt_id END AS run,
       c.prompt_id || coalesce(': ' || replace(s.preview, chr(10), ' '), '') AS conversation,
       count(DISTINCT c.prompt_id) OVER (PARTITION BY c.run_id) > 1 AS several, c.label, 100 * c.shift AS hundredths,
       row_number() OVER (ORDER BY r.created_at, c.run_id, c.prompt_id, c.label) AS place
FROM conversation_shift($runs, site := $site) AS c
JOIN runs AS r ON r.run_id = c.run_id
LEFT JOIN (SELECT run_id, prompt_id, max_by(preview, message_index) AS preview FROM snapshots
           WHERE NOT is_generated GROUP BY ALL) AS s ON s.run_id = c.run_id AND s.prompt_id = c.prompt_id
ORDER BY place
