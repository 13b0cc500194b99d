-- The references of each run, in the order of the scenario.
SELECT run_id, label, messages FROM reference_states WHERE list_contains($runs, run_id) ORDER BY run_id, ref_index
