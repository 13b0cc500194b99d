-- The tensors that a run has, with their layers and widths.
SELECT s.site, list(s.layer ORDER BY s.layer) FILTER (s.layer IS NOT NULL) AS layers, max(s.width) AS width
FROM sites AS s
WHERE s.run_id = $run AND s.reason IS NULL AND EXISTS (
  FROM files AS f
  WHERE f.run_id = s.run_id
    AND f.dataset = CASE WHEN s.site = 'attention' THEN 'attention' WHEN s.layer IS NULL THEN 'outputs' ELSE 'activations' END)
GROUP BY s.site
ORDER BY s.site
