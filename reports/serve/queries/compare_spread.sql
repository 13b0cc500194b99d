-- How alike the states are, per site and layer.
SELECT site, layer, n, pair_cosine, spread AS divergence, effective_rank AS directions FROM spread_by_ref($refs)
