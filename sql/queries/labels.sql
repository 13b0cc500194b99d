-- The labels of some runs' datasets, of all columns, the first thousand of each.
SELECT label
FROM (
  SELECT c.label_column, _label_text(json_extract(f.fields, _pointer(c.label_column))) AS label
  FROM label_columns($runs) AS c JOIN _label_fields($runs) AS f USING (run_id)
)
WHERE label IS NOT NULL
GROUP BY label_column, label
QUALIFY row_number() OVER (PARTITION BY label_column ORDER BY label) <= 1000
ORDER BY label_column, label;
