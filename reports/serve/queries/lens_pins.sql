-- How likely each layer finds the pinned tokens (position:token id, with commas between) after the token at their position.
WITH pins AS (
  SELECT try_cast(string_split(pin, ':')[1] AS INTEGER) AS place, try_cast(string_split(pin, ':')[2] AS INTEGER) AS token_id
  FROM (SELECT unnest(string_split($pins, ',')) AS pin)
)
SELECT t.position, t.token_id, t.layer, '«' || t.token || '» after ' || t.position || coalesce(' «' || r.token || '»', '') AS pin,
       exp(t.logprob) AS pinned_probability
FROM lens_trajectories($run, $prompt, (SELECT list(place) FROM pins WHERE place IS NOT NULL AND token_id IS NOT NULL),
                       (SELECT list(token_id) FROM pins WHERE place IS NOT NULL AND token_id IS NOT NULL)) AS t
JOIN pins AS p ON p.place = t.position AND p.token_id = t.token_id
LEFT JOIN tokens AS r ON r.run_id = $run AND r.prompt_id = $prompt AND r.position = t.position
ORDER BY t.position, t.token_id, t.layer
