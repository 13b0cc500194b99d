-- The state after each message against each reference: mean over the layers.
SELECT prompt_id, message_index, message_index || '·' || coalesce(map {'system': 'sys', 'user': 'usr', 'assistant': 'ast'}[role], role) AS message, role, is_generated, label, site,
       avg(cosine) AS cosine, avg(mae) AS mae, avg(jaccard) AS jaccard
FROM snapshot_reference($run)
GROUP BY ALL
ORDER BY prompt_id, message_index, label, site
