-- The rows whose vectors point most nearly along that of one row.
SELECT n.prompt_id, n.row_id, n.cosine, left(n.prompt_text, 200) AS text
FROM nearest_prompts($run, $prompt, $layer, $site, selector := $selector, k := 12) AS n
ORDER BY n.cosine DESC NULLS LAST, n.prompt_id
