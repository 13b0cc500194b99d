-- The conversations of the runs, with how much was read and written.
SELECT p.run_id, p.prompt_id, p.n_prompt_tokens, p.n_generated, p.stop_reason, p.generated_text, m.n_messages
FROM prompts AS p JOIN runs AS r USING (run_id)
LEFT JOIN (SELECT run_id, prompt_id, count(*) AS n_messages FROM messages GROUP BY ALL) AS m USING (run_id, prompt_id)
WHERE list_contains($runs, p.run_id)
ORDER BY r.created_at, p.run_id, p.prompt_id
