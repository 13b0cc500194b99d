-- Every layer's vector at the last token of one pass against every other layer's, at one site.
SELECT layer_a, layer_b, cosine FROM cross_layer_cosine($run, $step, $site, prompt := $prompt) ORDER BY layer_a, layer_b
