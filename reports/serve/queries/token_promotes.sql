-- The tokens that a token's vector speaks for: inner products with the unembedding, weighted as by the final norm.
SELECT rank, token, score
FROM promoted_tokens((SELECT t.vector FROM tensor_of($run, $site) AS t
                      WHERE t.prompt_id = $prompt AND t.layer = $layer AND t.position = $position), $run, k := 10)
ORDER BY rank
