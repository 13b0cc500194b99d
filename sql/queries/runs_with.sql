-- Ids of the runs that have files in each dataset, between bars.
SELECT dataset, '|' || string_agg(DISTINCT run_id, '|' ORDER BY run_id) || '|'
FROM files
GROUP BY dataset
ORDER BY dataset;
