-- Each reference against the conversation, mean over messages and layers: over all messages, and by role.
SELECT run_id, prompt_id, 'all' AS role, label, site, cosine_mean AS cosine, mae_mean AS mae, jaccard_mean AS jaccard
FROM reference_summary($runs)
UNION ALL
SELECT run_id, prompt_id, role, label, site, avg(cosine), avg(mae), avg(jaccard)
FROM role_average($runs)
GROUP BY run_id, prompt_id, role, label, site
ORDER BY run_id, prompt_id, role, label, site
