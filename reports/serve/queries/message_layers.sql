-- The state after one message against each reference at one site, layer by layer.
SELECT r.label, r.layer, r.cosine, r.mae, r.jaccard, r.centered_cosine AS cosine_centred
FROM snapshot_reference($run) AS r
WHERE r.prompt_id = $prompt AND r.site = $site AND r.message_index = $message
ORDER BY r.label, r.layer
