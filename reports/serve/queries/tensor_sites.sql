-- The tensors that a run has, with their layers and widths; attention has as many columns as there are tokens.
SELECT s.site, list(s.layer ORDER BY s.layer) FILTER (s.layer IS NOT NULL) AS layers, max(s.width) AS width
FROM sites AS s
WHERE s.run_id = $run AND s.width IS NOT NULL AND EXISTS (
  FROM files AS f
  WHERE f.run_id = s.run_id AND f.dataset = CASE WHEN s.layer IS NULL THEN 'outputs' ELSE 'activations' END)
GROUP BY s.site
UNION ALL
SELECT 'attention', list(DISTINCT f.layer ORDER BY f.layer), NULL
FROM files AS f WHERE f.run_id = $run AND f.dataset = 'attention' HAVING count(*) > 0
ORDER BY site
