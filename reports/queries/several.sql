-- The runs in which some label has several examples.
SELECT coalesce(list(DISTINCT run_id), []) AS runs FROM reference_states WHERE list_contains($runs, run_id) AND n > 1
