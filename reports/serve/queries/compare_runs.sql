-- The runs that have states to compare, newest first.
SELECT r.run_id, r.scenario, r.model_id FROM runs AS r
WHERE _has('states', r.run_id) OR _has('activations', r.run_id)
ORDER BY r.created_at DESC, r.run_id DESC
