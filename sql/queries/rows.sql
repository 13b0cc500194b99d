-- The rows of a run in one of the metadata tables.
SELECT * EXCLUDE (run_id) FROM query_table($table) WHERE run_id = $run ORDER BY ALL;
