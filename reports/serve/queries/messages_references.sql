-- The state after each message against each reference at one site, in one layer or as the mean over the layers.
-- centred: without what the references share.
SELECT r.message_index, r.message_index || ' ' || r.role AS message, r.role, r.is_generated, r.label,
       avg(r.cosine) AS cosine, avg(r.mae) AS mae, avg(r.jaccard) AS jaccard, avg(r.centered_cosine) AS cosine_centred
FROM snapshot_reference($run) AS r
WHERE r.prompt_id = $prompt AND r.site = $site AND ($at = 'mean' OR r.layer = try_cast($at AS INTEGER))
GROUP BY ALL
ORDER BY r.message_index, r.label
