-- How the residual stream of each state settles from layer to layer.
SELECT place, layer, cosine_adjacent AS cosine_layer, relative_step AS step_layer, cosine_last AS cosine_arrival FROM convergence_by_ref($refs)
