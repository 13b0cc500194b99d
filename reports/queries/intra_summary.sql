-- Summary over the layers of how far the state moved, per site.
SELECT s.run_id, prompt_id, compared, site, unnest(_spread(cosine, mae, jaccard, layer))
FROM (
  SELECT r.*, 'generation prompt' AS compared FROM reply_shift($runs) AS r
  UNION ALL
  SELECT i.*, 'last token' FROM intra_run($runs) AS i
) AS s
GROUP BY s.run_id, prompt_id, compared, site
ORDER BY list_position($runs, s.run_id), prompt_id, compared, site
