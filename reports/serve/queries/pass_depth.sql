-- The layer from which on the stream is no longer turned much, and the one from which on it points where it ends up.
SELECT place AS "at", settling_depth AS "settled from layer", arrival_depth AS "arrived from layer", layers
FROM pass_depth($run, $step, prompt := $prompt, threshold := try_cast($threshold AS DOUBLE))
