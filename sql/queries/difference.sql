-- How many rows of each run one table has that another lacks.
SELECT run_id, count(*)
FROM (FROM query_table($one) EXCEPT ALL FROM query_table($other))
GROUP BY run_id
ORDER BY run_id;
