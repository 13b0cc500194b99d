-- How far each message moved the state, mean over the layers: before it against after it, at the generation prompt.
SELECT t.run_id, t.prompt_id, t.message_index, t.role, t.is_generated, t.message_index || ' ' || t.role AS message,
       any_value(s.preview) AS preview, t.site, avg(t.cosine) AS cosine, avg(t.mae) AS mae, avg(t.jaccard) AS jaccard
FROM turn_shift($runs) AS t
JOIN snapshots AS s ON s.run_id = t.run_id AND s.prompt_id = t.prompt_id AND s.message_index = t.message_index
GROUP BY t.run_id, t.prompt_id, t.message_index, t.role, t.is_generated, t.site
ORDER BY t.run_id, t.prompt_id, t.message_index, t.site
