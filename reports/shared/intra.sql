-- What two comparisons of some runs say, each of which several queries read, computed once: in this connection the
-- analyses mean these rows.
CREATE TEMP TABLE intra_run_rows AS FROM intra_run($runs);
CREATE TEMP MACRO intra_run(run_id) AS TABLE FROM intra_run_rows;
CREATE TEMP TABLE turn_shift_rows AS FROM turn_shift($runs);
CREATE TEMP MACRO turn_shift(run_id) AS TABLE FROM turn_shift_rows;
