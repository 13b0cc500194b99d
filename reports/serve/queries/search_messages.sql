-- The messages that contain a text, whatever the case of its letters, newest runs first.
SELECT m.run_id, m.prompt_id, m.message_index, m.role, m.is_generated, m.first_position AS position,
       substr(m.content, greatest(1, instr(lower(m.content), lower($q)) - 60), 160) AS excerpt, count(*) OVER () AS total
FROM messages AS m JOIN runs AS r ON r.run_id = m.run_id
WHERE $q <> '' AND contains(lower(m.content), lower($q))
ORDER BY r.created_at DESC, m.run_id, m.prompt_id, m.message_index
LIMIT 100
