-- The tokens of some runs whose vectors point most nearly along a given one.
FROM nearest_tokens($vector::FLOAT[], $layer, $site, $k, runs := $runs)
