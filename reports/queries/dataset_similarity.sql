-- How alike the vectors of rows of one label are, and those of rows of different labels, layer by layer.
SELECT $label AS label_column, s.layer, p.pairs, s.n,
       CASE p.pairs WHEN 'same label' THEN s.within ELSE s.between END AS pair_cosine,
       CASE p.pairs WHEN 'same label' THEN s.centered_within ELSE s.centered_between END AS pair_centred
FROM label_similarity($run, $label, selector := $selector) AS s
CROSS JOIN (SELECT unnest(['same label', 'different labels']) AS pairs) AS p
WHERE s.site = $site AND list_contains($layers, s.layer)
ORDER BY s.layer, p.pairs
