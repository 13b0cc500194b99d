-- The dimensions of a site and layer that go furthest from zero in a conversation, and the token at which they do.
SELECT p.neuron, p.peak, p.position, t.token
FROM (SELECT v.dim AS neuron, arg_max(v.x, abs(v.x)) AS peak, arg_max(v.position, abs(v.x)) AS position
      FROM (SELECT position, unnest(vector) AS x, unnest(range(len(vector))) AS dim
            FROM tensor_of($run, $site) WHERE prompt_id = $prompt AND layer = $layer) AS v
      GROUP BY v.dim) AS p
LEFT JOIN tokens AS t ON t.run_id = $run AND t.prompt_id = $prompt AND t.position = p.position
ORDER BY abs(p.peak) DESC, p.neuron
LIMIT 24
