-- The mean over a role's messages against each reference, layer by layer; the generated reply left out.
SELECT run_id, prompt_id, role, label, site, layer, cosine, mae, jaccard
FROM role_average($runs)
ORDER BY run_id, prompt_id, role, label, site, layer
