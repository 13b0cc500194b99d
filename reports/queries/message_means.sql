-- The state after each message against each reference, mean over the layers.
-- centred: without what the references share; shift: without what is usual for the message and for the reference.
WITH means AS (
  SELECT r.prompt_id, r.message_index,
         r.message_index || '·' || CASE r.role WHEN 'system' THEN 'sys' WHEN 'user' THEN 'usr' WHEN 'assistant' THEN 'ast' ELSE r.role END AS message,
         r.role, r.is_generated, r.label, r.site, avg(r.cosine) AS cosine, avg(r.mae) AS mae, avg(r.jaccard) AS jaccard,
         avg(c.cosine) AS cosine_centred
  FROM snapshot_reference($run) AS r
  JOIN snapshot_cosine($run, centered := true) AS c USING (prompt_id, message_index, label, site, layer)
  GROUP BY ALL
)
SELECT *, cosine - avg(cosine) OVER (PARTITION BY prompt_id, site, message_index)
                 - avg(cosine) OVER (PARTITION BY prompt_id, site, label)
                 + avg(cosine) OVER (PARTITION BY prompt_id, site) AS shift
FROM means
ORDER BY prompt_id, message_index, label, site
