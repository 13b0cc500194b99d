-- The scenarios and models of the warehouse, each with its number of runs.
SELECT 'scenario' AS facet, scenario AS value, count(*) AS runs FROM runs GROUP BY scenario
UNION ALL
SELECT 'model', model_id, count(*) FROM runs GROUP BY model_id
ORDER BY facet, value
