-- The comparison of all pairs of runs.
CREATE OR REPLACE TEMP TABLE pair_rows AS FROM inter_run_among($runs);
