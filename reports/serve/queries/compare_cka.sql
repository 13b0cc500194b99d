-- Linear CKA between the layers of two states' aligned tokens, at most 64 of them.
SELECT layer_a, layer_b, positions, cka, cka_biased FROM cka_by_ref($refs, $alignment, $site)
WHERE place_a = 0 AND place_b = 1
