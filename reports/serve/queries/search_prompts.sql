-- The rows of datasets, and prompts without messages, whose text or id contains a text, whatever the case of its letters.
SELECT p.run_id, p.prompt_id, p.row_id, 0 AS position,
       substr(p.prompt_text, greatest(1, instr(lower(p.prompt_text), lower($q)) - 60), 160) AS excerpt, count(*) OVER () AS total
FROM prompts AS p JOIN runs AS r ON r.run_id = p.run_id
WHERE $q <> '' AND (contains(lower(p.prompt_text), lower($q)) OR contains(lower(p.row_id), lower($q)))
  AND (p.row_id IS NOT NULL OR NOT EXISTS (FROM messages AS m WHERE m.run_id = p.run_id AND m.prompt_id = p.prompt_id))
ORDER BY r.created_at DESC, p.run_id, p.prompt_id
LIMIT 100
