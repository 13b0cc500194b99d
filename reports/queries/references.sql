-- The state after each message against each reference, layer by layer.
SELECT run_id, prompt_id, message_index, role, label, site, layer, cosine, mae, jaccard
FROM snapshot_reference($runs)
ORDER BY run_id, prompt_id, message_index, label, site, layer
