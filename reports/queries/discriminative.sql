-- How far each layer tells the references apart, by role: largest less least mean cosine over the references.
SELECT run_id, 'raw' AS scale, prompt_id, role, site, layer, spread, closest FROM discriminative_layers($runs)
UNION ALL
SELECT run_id, 'centred', prompt_id, role, site, layer, spread, closest FROM discriminative_layers($runs, centered := true)
ORDER BY run_id, scale DESC, prompt_id, role, site, layer
