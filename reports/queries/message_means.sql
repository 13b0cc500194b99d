-- The state after each message against each reference, mean over the layers.
-- centred: without what the references share; shift: without what is usual for the message and for the reference.
WITH means AS (
  SELECT r.run_id, r.prompt_id, r.message_index,
         r.message_index || '·' || CASE r.role WHEN 'system' THEN 'sys' WHEN 'user' THEN 'usr' WHEN 'assistant' THEN 'ast' ELSE r.role END AS message,
         r.role, r.is_generated, r.label, r.site, avg(r.cosine) AS cosine, avg(r.mae) AS mae, avg(r.jaccard) AS jaccard,
         avg(r.centered_cosine) AS cosine_centred
  FROM snapshot_reference($runs) AS r
  GROUP BY ALL
)
SELECT *, cosine - avg(cosine) OVER (PARTITION BY run_id, prompt_id, site, message_index)
                 - avg(cosine) OVER (PARTITION BY run_id, prompt_id, site, label)
                 + avg(cosine) OVER (PARTITION BY run_id, prompt_id, site) AS shift
FROM means
ORDER BY run_id, prompt_id, message_index, label, site
