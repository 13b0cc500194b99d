-- Two states against each other, over the layers of each site: the mean, the extreme and where it is.
SELECT site, unnest(_spread(cosine, mae, jaccard, layer)), avg(std) AS std_mean, max(std) AS std_max,
       max_by(layer, (std, -layer)) AS std_max_layer
FROM pairs_by_ref($refs)
GROUP BY site ORDER BY site
