-- The state after each message against each reference, layer by layer.
SELECT prompt_id, message_index, role, label, site, layer, cosine, mae, jaccard
FROM snapshot_reference($run)
