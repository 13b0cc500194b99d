-- One column of a dataset for the rows of the sample.
SELECT l.prompt_id, l.label FROM label_values($run, $label) AS l SEMI JOIN dataset_sample AS s ON s.prompt_id = l.prompt_id
ORDER BY l.prompt_id
