-- One dimension of each token's vector, at one layer and site.
SELECT position, token, role, value FROM neuron_trajectory($run, $layer, $site, $neuron)
WHERE prompt_id = $prompt ORDER BY position
