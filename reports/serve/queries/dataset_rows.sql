-- Some rows of a dataset: their text as the model read it, and their columns as a JSON object.
SELECT p.prompt_id, p.row_id, left(p.prompt_text, 2000) AS text, f.fields
FROM prompts AS p JOIN _label_fields($run) AS f ON f.run_id = p.run_id AND f.prompt_id = p.prompt_id
WHERE p.run_id = $run AND p.prompt_id IN (SELECT unnest($prompts))
ORDER BY p.prompt_id
