-- Every message of the conversations, the generated reply last.
SELECT run_id, prompt_id, message_index, role, content, is_generated
FROM messages
WHERE list_contains($runs, run_id)
ORDER BY run_id, prompt_id, message_index
