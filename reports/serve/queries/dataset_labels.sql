-- One column of a dataset.
SELECT prompt_id, label FROM label_values($run, $label) ORDER BY prompt_id
