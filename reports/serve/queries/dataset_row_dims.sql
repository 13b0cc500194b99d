-- The dimensions of one row's vector that are furthest from 0.
SELECT d.position, d.dim, d.value AS dimension_value
FROM (SELECT v.position, unnest(range(len(v.vector))) AS dim, unnest(v.vector) AS value
      FROM vectors_of($run, $layer, $site, selector := $selector) AS v WHERE v.prompt_id = $prompt) AS d
QUALIFY row_number() OVER (PARTITION BY d.position ORDER BY abs(d.value) DESC, d.dim) <= 20
ORDER BY d.position, abs(d.value) DESC, d.dim
