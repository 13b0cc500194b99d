-- What each layer adds to the residual stream at the last token of each forward pass.
SELECT run_id, prompt_id, step, layer, norm_hidden_in, norm_attn_out, norm_mlp_down_out, norm_hidden_out,
       cosine_attn_out, cosine_mlp_down_out
FROM residual_decomposition($runs)
ORDER BY run_id, prompt_id, step, layer
