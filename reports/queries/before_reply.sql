-- The state before the reply of each conversation against each reference, layer by layer.
SELECT c.run_id, c.prompt_id, c.message_index, c.role, c.is_generated, c.label, c.site, c.layer, c.cosine
FROM snapshot_cosine($runs) AS c
JOIN (SELECT run_id, prompt_id, max(message_index) AS message_index FROM snapshots WHERE NOT is_generated GROUP BY ALL) AS e
  ON e.run_id = c.run_id AND e.prompt_id = c.prompt_id AND e.message_index = c.message_index
WHERE c.site = $site
ORDER BY c.run_id, c.prompt_id, c.label, c.layer
