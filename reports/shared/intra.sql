-- The initial and final states of some runs, which two queries read, computed once: in this connection the
-- analysis means these rows.
CREATE TEMP TABLE intra_run_rows AS FROM intra_run($runs);
CREATE TEMP MACRO intra_run(run_id) AS TABLE FROM intra_run_rows;
