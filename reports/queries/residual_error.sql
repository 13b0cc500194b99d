-- How exactly each layer's parts add up: the largest error relative to the largest value, over the whole run.
SELECT layer, residual_error
FROM layers
WHERE run_id = $run
ORDER BY layer
