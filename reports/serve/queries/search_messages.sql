-- The messages that contain a text, whatever the case of its letters, newest runs first; of datasets the replies alone.
SELECT m.run_id, m.prompt_id, m.message_index, m.role, m.is_generated, m.first_position AS position,
       substr(m.content, greatest(1, instr(lower(m.content), lower($q)) - 60), 160) AS excerpt, count(*) OVER () AS total
FROM messages AS m JOIN runs AS r ON r.run_id = m.run_id
WHERE $q <> '' AND contains(lower(m.content), lower($q))
  AND (m.is_generated OR NOT EXISTS (FROM prompts AS p WHERE p.run_id = m.run_id AND p.prompt_id = m.prompt_id
                                                      AND p.row_id IS NOT NULL))
ORDER BY r.created_at DESC, m.run_id, m.prompt_id, m.message_index
LIMIT 100
