-- The mean over a role's messages against each reference, layer by layer; the generated reply left out.
SELECT prompt_id, role, label, site, layer, cosine, mae, jaccard
FROM role_average($run)
