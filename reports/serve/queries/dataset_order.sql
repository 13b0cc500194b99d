-- The rows of a dataset that have some words, in the order of a column; all of them in their own order for none.
WITH rows AS (
  SELECT p.prompt_id,
         lower(concat_ws(' ', p.prompt_text, array_to_string(json_extract_string(f.fields, '$.*')[3:], ' '))) AS text,
         CASE WHEN $sort <> '' THEN _label_text(json_extract(f.fields, _pointer($sort))) END AS label
  FROM prompts AS p JOIN _label_fields($run) AS f ON f.run_id = p.run_id AND f.prompt_id = p.prompt_id
  WHERE p.run_id = $run
)
SELECT r.prompt_id
FROM rows AS r
WHERE len(list_filter(string_split(lower($find), ' '), lambda word: NOT contains(r.text, word))) = 0
ORDER BY CASE WHEN $way = 'down' THEN -try_cast(r.label AS DOUBLE) ELSE try_cast(r.label AS DOUBLE) END NULLS LAST,
         r.label IS NULL, CASE WHEN $way = 'down' THEN r.label END DESC, CASE WHEN $way <> 'down' THEN r.label END,
         r.prompt_id
