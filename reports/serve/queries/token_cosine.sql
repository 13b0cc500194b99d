-- Cosine of each token's vector and that of one token, at one layer and site.
SELECT position, token, role, cosine AS value
FROM token_similarity($run, $layer, $site, $position, prompt := $prompt) ORDER BY position
