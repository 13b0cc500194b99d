-- The tokens of a conversation or text, prompt and reply.
SELECT position, token FROM tokens WHERE run_id = $run AND prompt_id = $prompt ORDER BY position
