-- The conversations of the runs, with how much was read and written.
SELECT p.run_id, p.prompt_id, p.n_prompt_tokens, p.n_generated, p.stop_reason, p.generated_text
FROM prompts AS p JOIN runs AS r USING (run_id)
WHERE list_contains($runs, p.run_id)
ORDER BY r.created_at, p.run_id, p.prompt_id
