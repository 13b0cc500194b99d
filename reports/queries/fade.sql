-- The reference that each user message is closest to, and the later states against that same reference.
SELECT 'raw' AS scale, prompt_id, site, origin, origin || '·usr ' || label AS turn, label, message_index, turns_since, is_generated, cosine
FROM memory_fade($run)
UNION ALL
SELECT 'centred', prompt_id, site, origin, origin || '·usr ' || label, label, message_index, turns_since, is_generated, cosine
FROM memory_fade($run, centered := true)
