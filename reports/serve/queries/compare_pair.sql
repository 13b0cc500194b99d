-- Two states against each other, per site and layer.
SELECT site, layer, cosine, mae, jaccard, std FROM pairs_by_ref($refs)
