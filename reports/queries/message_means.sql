-- The state after each message against each reference, mean over the layers; centred: less the mean over the references.
WITH compared AS (
  SELECT r.prompt_id, r.message_index, r.role, r.is_generated, r.label, r.site, r.layer, r.cosine, r.mae, r.jaccard,
         r.cosine - avg(r.cosine) OVER others AS cosine_centred, r.mae - avg(r.mae) OVER others AS mae_centred,
         r.jaccard - avg(r.jaccard) OVER others AS jaccard_centred
  FROM snapshot_reference($run) AS r
  WINDOW others AS (PARTITION BY r.prompt_id, r.message_index, r.site, r.layer)
)
SELECT prompt_id, message_index,
       message_index || '·' || CASE role WHEN 'system' THEN 'sys' WHEN 'user' THEN 'usr' WHEN 'assistant' THEN 'ast' ELSE role END AS message,
       role, is_generated, label, site, avg(cosine) AS cosine, avg(mae) AS mae, avg(jaccard) AS jaccard,
       avg(cosine_centred) AS cosine_centred, avg(mae_centred) AS mae_centred, avg(jaccard_centred) AS jaccard_centred
FROM compared
GROUP BY ALL
ORDER BY prompt_id, message_index, label, site
