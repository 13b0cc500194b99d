-- How exactly each layer's parts add up: the largest error relative to the largest value, over the whole run.
SELECT run_id, layer, residual_error
FROM layers
WHERE list_contains($runs, run_id)
ORDER BY run_id, layer
