-- What each layer writes to the residual stream, at the last token of one pass.
SELECT layer, norm_hidden_in, norm_attn_out, norm_mlp_down_out, norm_hidden_out, cosine_attn_out, cosine_mlp_down_out
FROM residual_decomposition($run)
WHERE prompt_id = $prompt AND step = $step
ORDER BY layer
