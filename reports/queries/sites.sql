-- The sites that a run captured, with the layers they were captured in.
SELECT run_id, site, count(DISTINCT layer) FILTER (module IS NOT NULL) AS layers,
       any_value(reason) AS reason
FROM sites
WHERE list_contains($runs, run_id) AND layer IS NOT NULL
GROUP BY run_id, site
ORDER BY run_id, site
