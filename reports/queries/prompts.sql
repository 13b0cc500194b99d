-- The conversations of the runs, with how much was read and written.
SELECT run_id, prompt_id, n_prompt_tokens, n_generated, stop_reason, generated_text
FROM prompts
WHERE list_contains($runs, run_id)
ORDER BY run_id, prompt_id
