-- How long the vector of one row is in each layer.
SELECT v.layer, v.position, norm(v.vector) AS row_norm
FROM _sites_of($run, $selector) AS v
WHERE v.site = $site AND v.prompt_id = $prompt
ORDER BY v.layer, v.position
