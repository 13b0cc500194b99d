-- Every two states at a site, at one layer or the mean over the layers: from one minus these cosines alab joins them by average linkage.
SELECT place_a, place_b, avg(cosine) AS cosine
FROM pairs_by_ref($refs, site := $site, layer := try_cast($depth AS INTEGER))
GROUP BY place_a, place_b ORDER BY place_a, place_b
