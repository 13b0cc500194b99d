-- Each reference over the whole conversation: mean over messages and layers, the generated reply left out.
SELECT prompt_id, label, site, avg(cosine) AS cosine, avg(mae) AS mae, avg(jaccard) AS jaccard
FROM snapshot_reference($run)
WHERE NOT is_generated
GROUP BY ALL
ORDER BY prompt_id, label, site
