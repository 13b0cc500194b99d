-- The states that were kept, one after each message.
SELECT run_id, prompt_id, message_index, role, preview, is_generated
FROM snapshots
WHERE list_contains($runs, run_id)
ORDER BY run_id, prompt_id, message_index
