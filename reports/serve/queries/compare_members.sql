-- Each state against the centroid of all, layer by layer.
SELECT place, layer, n, cosine AS cosine_centroid, distance, relative_distance FROM members_by_ref($refs, $site)
