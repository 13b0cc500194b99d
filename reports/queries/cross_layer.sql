-- Every layer's last-token state after the prefill against every other layer's, per site.
SELECT 'hidden_in' AS site, layer_a, layer_b, cosine FROM cross_layer_cosine($run, 0, 'hidden_in', prompt := $prompt)
UNION ALL
SELECT 'hidden_out', layer_a, layer_b, cosine FROM cross_layer_cosine($run, 0, 'hidden_out', prompt := $prompt)
UNION ALL
SELECT 'attn_out', layer_a, layer_b, cosine FROM cross_layer_cosine($run, 0, 'attn_out', prompt := $prompt)
UNION ALL
SELECT 'mlp_down_out', layer_a, layer_b, cosine FROM cross_layer_cosine($run, 0, 'mlp_down_out', prompt := $prompt)
