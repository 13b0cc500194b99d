-- The layer of a run whose residual stream adds up least.
SELECT layer, residual_error FROM layers WHERE run_id = $run ORDER BY residual_error DESC NULLS LAST LIMIT 1;
