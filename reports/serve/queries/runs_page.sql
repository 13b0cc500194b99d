-- The runs, newest first, with what each began with and what is to be known about it.
SELECT o.*, coalesce(w.warnings, 0) AS warnings, left(coalesce(m.text, ''), 200) AS first_text
FROM run_overview() AS o
LEFT JOIN (SELECT run_id, count(*) AS warnings FROM warnings WHERE code <> 'dtype' GROUP BY run_id) AS w USING (run_id)
LEFT JOIN (SELECT run_id, arg_min(content, (prompt_id, message_index)) FILTER (role <> 'system') AS text
           FROM messages GROUP BY run_id) AS m USING (run_id)
ORDER BY o.created_at DESC, o.run_id DESC
