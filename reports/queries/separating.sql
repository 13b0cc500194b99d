-- Which layers tell the references apart.
SELECT * FROM separating_layers($runs) WHERE site = $site ORDER BY run_id
