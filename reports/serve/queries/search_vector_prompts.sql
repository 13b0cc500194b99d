-- The rows of a dataset whose vectors point most nearly along a given one, at one layer and site.
SELECT v.run_id, v.prompt_id, p.row_id, v.position, left(p.prompt_text, 160) AS excerpt, cosine(v.vector, $vector::FLOAT[]) AS cosine
FROM vectors_of($source, $layer, $site) AS v
LEFT JOIN prompts AS p ON p.run_id = v.run_id AND p.prompt_id = v.prompt_id
WHERE len(v.vector) = len($vector::FLOAT[])
ORDER BY cosine DESC NULLS LAST, v.prompt_id, v.position
LIMIT 20
