-- How far each layer tells the references apart, by role: largest less least mean cosine over the references.
SELECT 'raw' AS scale, prompt_id, role, site, layer, spread, closest FROM discriminative_layers($run)
UNION ALL
SELECT 'centred', prompt_id, role, site, layer, spread, closest FROM discriminative_layers($run, centered := true)
