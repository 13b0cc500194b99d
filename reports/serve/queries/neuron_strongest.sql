-- The tokens at which one dimension of a site is furthest from zero, in all conversations of the run.
SELECT v.value AS "value", v.token AS "token", v.prompt_id AS "conversation", v.position AS "position", v.step AS "pass", v.role AS "role"
FROM neuron_trajectory($run, $layer, $site, $neuron) AS v
WHERE $neuron >= 0 AND v.value IS NOT NULL
ORDER BY abs(v.value) DESC, v.prompt_id, v.position
LIMIT 20
