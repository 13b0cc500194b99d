-- How far each token's vector reaches from one reference towards another, from their midpoint, at one layer and site.
SELECT position, token, role, projection AS value, positive_end, is_extreme
FROM token_projection($run, $positive, $negative, $layer, $site)
WHERE prompt_id = $prompt ORDER BY position
