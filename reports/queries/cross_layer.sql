-- Every layer's last-token state after the prefill against every other layer's, per site.
SELECT * FROM (
  SELECT run_id, prompt_id, 'hidden_in' AS site, layer_a, layer_b, cosine
  FROM cross_layer_cosine($runs, 0, 'hidden_in', prompt := $prompt)
  UNION ALL
  SELECT run_id, prompt_id, 'hidden_out', layer_a, layer_b, cosine
  FROM cross_layer_cosine($runs, 0, 'hidden_out', prompt := $prompt)
  UNION ALL
  SELECT run_id, prompt_id, 'attn_out', layer_a, layer_b, cosine
  FROM cross_layer_cosine($runs, 0, 'attn_out', prompt := $prompt)
  UNION ALL
  SELECT run_id, prompt_id, 'mlp_down_out', layer_a, layer_b, cosine
  FROM cross_layer_cosine($runs, 0, 'mlp_down_out', prompt := $prompt)
)
ORDER BY run_id, prompt_id, site, layer_a, layer_b
