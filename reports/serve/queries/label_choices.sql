-- The columns of a dataset that have a few labels, and these.
SELECT c.label_column, v.label, count(*) AS n
FROM label_columns($source) AS c
JOIN (SELECT unnest(_run_ids($source)) AS run_id) AS r ON r.run_id = c.run_id
JOIN LATERAL (SELECT l.label FROM label_values($source, c.label_column) AS l) AS v ON v.label IS NOT NULL
WHERE c.labels BETWEEN 2 AND 40
GROUP BY ALL ORDER BY c.label_column, n DESC, v.label
