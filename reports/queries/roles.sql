-- The mean over a role's messages against each reference, layer by layer; the generated reply left out.
SELECT prompt_id, role, label, site, layer, avg(cosine) AS cosine, avg(mae) AS mae, avg(jaccard) AS jaccard
FROM snapshot_reference($run)
WHERE NOT is_generated
GROUP BY ALL
ORDER BY prompt_id, role, label, site, layer
