-- How much closer to each reference the assistant's messages are than the user's, by site.
SELECT run_id, 'raw' AS scale, prompt_id, site, coalesce(label, 'all references') AS reference, label IS NULL AS over_all,
       cosine_user, cosine_assistant, damping, NULL::DOUBLE AS damping_centred
FROM damping($runs)
UNION ALL
SELECT run_id, 'centred', prompt_id, site, coalesce(label, 'all references'), label IS NULL, cosine_user, cosine_assistant, NULL,
       damping
FROM damping($runs, centered := true)
ORDER BY run_id, scale DESC, prompt_id, site, over_all DESC, reference
