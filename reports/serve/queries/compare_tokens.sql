-- Two states' aligned tokens against each other, layer by layer.
SELECT pair, pairs, layer, token_a, token_b, position_a, position_b, cosine, mae
FROM tokens_by_pair($refs, $alignment, $site)
