-- The comparison of all pairs of runs, which several queries read, was computed once: from here on its names mean
-- these rows.
CREATE TEMP MACRO inter_run_among(runs) AS TABLE FROM pair_rows;
CREATE TEMP MACRO inter_run(a, b) AS TABLE FROM pair_rows WHERE run_a = a AND run_b = b;
