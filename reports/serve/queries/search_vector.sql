-- The tokens of all runs whose vectors point most nearly along a given one, at one layer and site.
SELECT run_id, prompt_id, position, token, role, cosine
FROM nearest_tokens($vector::FLOAT[], $layer, $site, 20)
ORDER BY cosine DESC NULLS LAST, run_id, prompt_id, position
