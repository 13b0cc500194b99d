-- The comparisons of the states of some runs, which several queries and other analyses read, computed once: in this
-- connection the analyses mean these rows.
CREATE TEMP TABLE intra_run_rows AS FROM intra_run($runs);
CREATE TEMP MACRO intra_run(run_id) AS TABLE FROM intra_run_rows;
CREATE TEMP TABLE compared_states AS FROM _compare_states($runs, 'snapshot');
CREATE TEMP MACRO _compare_states(runs, kind) AS TABLE
  SELECT p.* FROM compared_states AS p WHERE (p.b.state = 'snapshot') = (kind = 'turns');
CREATE TEMP TABLE snapshot_reference_rows AS FROM snapshot_reference($runs);
CREATE TEMP MACRO snapshot_reference(run_id) AS TABLE FROM snapshot_reference_rows;
CREATE TEMP TABLE turn_shift_rows AS FROM turn_shift($runs);
CREATE TEMP MACRO turn_shift(run_id) AS TABLE FROM turn_shift_rows;
