-- The references of each run, in the order of the scenario, with the number of their examples.
SELECT run_id, label, messages, coalesce(n, 1) AS n FROM reference_states WHERE list_contains($runs, run_id) ORDER BY run_id, ref_index
