-- The comparison of all pairs of runs, which several queries read, computed once.
CREATE OR REPLACE TEMP TABLE pair_rows AS FROM inter_run_among($runs);
CREATE TEMP MACRO inter_run_among(runs) AS TABLE FROM pair_rows;
