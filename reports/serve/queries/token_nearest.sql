-- The tokens of all runs whose vectors point most nearly along that of a token, which stands first itself.
SELECT run_id, prompt_id, position, token, role, cosine
FROM nearest_tokens((SELECT t.vector FROM tensor_of($run, $site) AS t
                     WHERE t.prompt_id = $prompt AND t.layer = $layer AND t.position = $position),
                    $layer, $site, 20)
ORDER BY cosine DESC NULLS LAST, run_id, prompt_id, position
