-- The state after each message against each reference, mean over the layers.
-- centred: without what the references share; hundredths: `reference_shift`, in hundredths of a cosine.
WITH means AS (
  SELECT r.run_id, r.prompt_id, r.message_index, r.role, r.is_generated, r.label, r.site,
         avg(r.cosine) AS cosine, avg(r.mae) AS mae, avg(r.jaccard) AS jaccard, avg(r.centered_cosine) AS cosine_centred
  FROM snapshot_reference($runs) AS r
  GROUP BY ALL
)
SELECT m.run_id, m.prompt_id, m.message_index, m.message_index || ' ' || m.role AS message,
       m.message_index || ' ' || m.role || coalesce(': ' || replace(i.preview, chr(10), ' '), '') AS message_text,
       m.role, m.is_generated, m.label, m.site, m.cosine, m.mae, m.jaccard, m.cosine_centred, 100 * s.shift AS hundredths
FROM means AS m
JOIN reference_shift($runs) AS s
  ON s.run_id = m.run_id AND s.prompt_id = m.prompt_id AND s.message_index = m.message_index AND s.label = m.label
 AND s.site = m.site
JOIN snapshots AS i
  ON i.run_id = m.run_id AND i.prompt_id = m.prompt_id AND i.message_index = m.message_index
ORDER BY m.run_id, m.prompt_id, m.message_index, m.label, m.site
