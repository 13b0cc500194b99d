-- The tokens of some steps of a run that have vectors, as (prompt, step, position), in order.
SELECT prompt_id, step, position
FROM activations_of($run)
WHERE layer = $layer AND list_contains($steps, step)
ORDER BY ALL;
