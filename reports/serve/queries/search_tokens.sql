-- The tokens that contain a text, whatever the case of its letters, with what stands around each, newest runs first.
WITH hits AS (
  SELECT t.run_id, t.prompt_id, t.position, t.token, t.role, r.created_at, count(*) OVER () AS total
  FROM tokens AS t JOIN runs AS r ON r.run_id = t.run_id
  WHERE $q <> '' AND contains(lower(t.token), lower($q))
  ORDER BY r.created_at DESC, t.run_id, t.prompt_id, t.position
  LIMIT 100
)
SELECT h.run_id, h.prompt_id, h.position, h.token, h.role,
       (SELECT string_agg(n.token, '' ORDER BY n.position) FROM tokens AS n
        WHERE n.run_id = h.run_id AND n.prompt_id = h.prompt_id AND n.position BETWEEN h.position - 8 AND h.position + 8) AS excerpt,
       h.total
FROM hits AS h
ORDER BY h.created_at DESC, h.run_id, h.prompt_id, h.position
