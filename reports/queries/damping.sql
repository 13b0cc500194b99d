-- How much closer to each reference the assistant's messages are than the user's, by site.
SELECT 'raw' AS scale, prompt_id, site, coalesce(label, 'all references') AS reference, label IS NULL AS over_all,
       cosine_user, cosine_assistant, damping
FROM damping($run)
UNION ALL
SELECT 'centred', prompt_id, site, coalesce(label, 'all references'), label IS NULL, cosine_user, cosine_assistant, damping
FROM damping($run, centered := true)
