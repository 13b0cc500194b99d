-- The comparisons of some runs with their references, which several queries and other analyses read, computed once:
-- in this connection the analyses mean these rows.
CREATE TEMP TABLE reference_pairs AS FROM _compare_states($runs, 'reference');
CREATE TEMP MACRO _compare_states(runs, kind) AS TABLE FROM reference_pairs;
CREATE TEMP TABLE snapshot_reference_rows AS FROM snapshot_reference($runs);
CREATE TEMP MACRO snapshot_reference(run_id) AS TABLE FROM snapshot_reference_rows;
