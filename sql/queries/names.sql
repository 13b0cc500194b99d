-- What stands in a column of a metadata table for some runs, each once.
SELECT DISTINCT COLUMNS([$column]) FROM query_table($table) WHERE run_id IN (SELECT unnest($runs)) ORDER BY ALL;
