-- The analyses of one run that several queries and other analyses read, computed once: in this connection their
-- names mean these rows.
CREATE TEMP TABLE snapshot_reference_rows AS FROM snapshot_reference($run);
CREATE TEMP TABLE snapshot_cosine_rows AS FROM snapshot_cosine($run, centered := true);
CREATE TEMP TABLE intra_run_rows AS FROM intra_run($run);
CREATE TEMP MACRO snapshot_reference(run_id) AS TABLE FROM snapshot_reference_rows;
CREATE TEMP MACRO intra_run(run_id) AS TABLE FROM intra_run_rows;
CREATE TEMP MACRO snapshot_cosine(run_id, centered := false) AS TABLE
  SELECT * FROM snapshot_cosine_rows WHERE centered
  UNION ALL BY NAME
  SELECT * EXCLUDE (mae, jaccard) FROM snapshot_reference_rows WHERE NOT centered;
