-- Each reference against the conversation: mean over messages and layers, the generated reply left out; by role or over all.
SELECT prompt_id, coalesce(role, 'all') AS role, label, site,
       avg(cosine) AS cosine, avg(mae) AS mae, avg(jaccard) AS jaccard
FROM snapshot_reference($run)
WHERE NOT is_generated
GROUP BY GROUPING SETS ((prompt_id, label, site), (prompt_id, role, label, site))
ORDER BY prompt_id, role, label, site
