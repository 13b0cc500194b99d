-- The runs that match, in the order that is asked for: every word stands somewhere in a run's texts or its name.
WITH words AS (
  SELECT DISTINCT unnest(string_split_regex(lower(trim($q)), '\s+')) AS word WHERE trim($q) <> ''
), texts AS (
  SELECT run_id, concat_ws(' ', run_id, scenario, model_id, adapter) AS text FROM runs
  UNION ALL SELECT run_id, content FROM messages
  UNION ALL SELECT run_id, prompt_text FROM prompts WHERE row_id IS NOT NULL
  UNION ALL SELECT run_id, generated_text FROM prompts WHERE row_id IS NOT NULL
), matching AS (
  SELECT run_id FROM texts JOIN words ON contains(lower(text), word)
  GROUP BY run_id HAVING count(DISTINCT word) = (SELECT count(*) FROM words)
), found AS (
  SELECT o.*, r.began, coalesce(w.warnings, 0) AS warnings,
         CASE $sort WHEN 'prompts' THEN o.prompts WHEN 'steps' THEN o.steps WHEN 'tokens' THEN o.tokens
              WHEN 'size' THEN o.mb WHEN 'warnings' THEN coalesce(w.warnings, 0)
              WHEN 'captured' THEN epoch_us(r.began) END AS number,
         CASE $sort WHEN 'run' THEN o.run_id WHEN 'model' THEN o.model_id END AS name
  FROM run_overview() AS o
  JOIN (SELECT run_id, created_at AS began FROM runs) AS r USING (run_id)
  LEFT JOIN (SELECT run_id, count(*) AS warnings FROM warnings WHERE code <> 'dtype' GROUP BY run_id) AS w USING (run_id)
  WHERE $scenario IN ('', o.scenario) AND $model IN ('', o.model_id)
    AND (trim($q) = '' OR o.run_id IN (SELECT run_id FROM matching))
), shown AS (
  SELECT *, count(*) OVER () AS matches, row_number() OVER (
           ORDER BY CASE WHEN $order = 'up' THEN number ELSE -number END, CASE WHEN $order = 'up' THEN name END,
                    CASE WHEN $order = 'down' THEN name END DESC, began DESC, run_id DESC) AS place
  FROM found
)
SELECT s.* EXCLUDE (number, name, began), left(coalesce(m.text, p.text, ''), 200) AS first_text
FROM shown AS s
LEFT JOIN (SELECT run_id, arg_min(content, (prompt_id, message_index)) FILTER (role <> 'system') AS text
           FROM messages GROUP BY run_id) AS m USING (run_id)
LEFT JOIN (SELECT run_id, arg_min(prompt_text, prompt_id) AS text FROM prompts GROUP BY run_id) AS p USING (run_id)
WHERE s.place <= $limit
ORDER BY s.place
