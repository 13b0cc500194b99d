-- How long the vectors of each label of a dataset are, layer by layer.
SELECT $label AS label_column, n.layer, n.label, n.n, n.norm AS label_norm, n.norm_std
FROM label_norms($run, $label, selector := $selector) AS n
WHERE n.site = $site AND list_contains($layers, n.layer)
ORDER BY n.layer, n.label
