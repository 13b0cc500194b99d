-- Where one head looks from a token: the weight of each token up to it.
SELECT position, token, role, weight FROM (
  SELECT a.at AS position, n.token, n.role, a.weight
  FROM (SELECT unnest(t.weights) AS weight, unnest(range(len(t.weights)))::INTEGER AS at
        FROM attention_of($run) AS t
        WHERE t.prompt_id = $prompt AND t.layer = $layer AND t.head = $head AND t.position = $position) AS a
  LEFT JOIN tokens AS n ON n.run_id = $run AND n.prompt_id = $prompt AND n.position = a.at
)
ORDER BY weight DESC, position
