-- How the residual stream settles in one pass, layer by layer: at its last token, and the mean over its tokens.
SELECT layer, tokens, cosine_adjacent AS cosine_adjacent_last, cosine_adjacent_mean,
       relative_step AS relative_step_last, relative_step_mean, cosine_last AS cosine_end_last, cosine_last_mean AS cosine_end_mean
FROM pass_convergence($run, $step, prompt := $prompt)
ORDER BY layer
