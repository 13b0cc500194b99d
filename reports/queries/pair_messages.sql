-- Runs against each other after each message, layer by layer.
SELECT m.run_a, m.run_b, m.run_a || ' × ' || m.run_b AS pair, m.prompt_id, m.message_index,
       m.message_index || ' ' || m.role AS message, m.role, m.is_generated, m.site, m.layer, m.cosine, m.mae, m.jaccard
FROM inter_run_messages($runs) AS m
ORDER BY m.run_a, m.run_b, m.prompt_id, m.message_index, m.site, m.layer
