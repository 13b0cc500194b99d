-- Some runs with one another, as the report compares them.
FROM inter_run_among($runs)
