-- The reference that each user message is closest to, and the later states against that same reference.
SELECT run_id, 'raw' AS scale, prompt_id, site, origin, origin || ' user, ' || label AS turn, label, message_index,
       turns_since, is_generated, cosine, NULL::DOUBLE AS cosine_centred
FROM memory_fade($runs)
UNION ALL
SELECT run_id, 'centred', prompt_id, site, origin, origin || ' user, ' || label, label, message_index, turns_since,
       is_generated, NULL, cosine
FROM memory_fade($runs, centered := true)
ORDER BY run_id, scale DESC, prompt_id, site, origin, message_index
