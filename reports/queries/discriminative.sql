-- How far each layer tells the references apart in the messages of a role: largest less least mean cosine.
SELECT run_id, 'raw' AS scale, prompt_id, role, site, layer, spread, NULL::DOUBLE AS spread_centred, closest
FROM discriminative_layers($runs)
UNION ALL
SELECT run_id, 'centred', prompt_id, role, site, layer, NULL, spread, closest
FROM discriminative_layers($runs, centered := true)
ORDER BY run_id, scale DESC, prompt_id, role, site, layer
