-- Which sites a dataset run has, of which layers, and why it does not have the others.
SELECT site, count(width) AS kept, min(layer) FILTER (width IS NOT NULL) AS first, max(width) AS width,
       max(reason) AS reason
FROM sites WHERE run_id = $run AND site IS NOT NULL GROUP BY site ORDER BY site
