-- The rows of a dataset whose vectors point most nearly along that of a token, at one layer and site.
WITH asked AS MATERIALIZED (
  SELECT t.vector FROM tensor_of($run, $site) AS t
  WHERE t.prompt_id = $prompt AND t.layer = $layer AND t.position = $position
)
SELECT v.run_id, v.prompt_id, p.row_id, v.position, left(p.prompt_text, 160) AS excerpt, cosine(v.vector, a.vector) AS cosine
FROM vectors_of($source, $layer, $site) AS v
JOIN asked AS a ON len(a.vector) = len(v.vector)
LEFT JOIN prompts AS p ON p.run_id = v.run_id AND p.prompt_id = v.prompt_id
ORDER BY cosine DESC NULLS LAST, v.prompt_id, v.position
LIMIT 20
