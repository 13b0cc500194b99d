-- Every run, newest first, with its scenario and its model.
SELECT run_id, scenario, model_id, created_at FROM runs ORDER BY created_at DESC, run_id DESC
