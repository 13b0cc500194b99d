-- The dimensions in which a token's vector is largest, at one layer and site.
SELECT dim, t.vector[dim + 1] AS value
FROM (SELECT v.vector, unnest(top_dims(v.vector, 10)) AS dim, unnest(range(10)) AS place
      FROM tensor_of($run, $site) AS v
      WHERE v.prompt_id = $prompt AND v.layer = $layer AND v.position = $position) AS t
WHERE dim IS NOT NULL
ORDER BY place
