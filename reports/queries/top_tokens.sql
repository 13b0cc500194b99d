-- The most likely next tokens of every forward pass.
SELECT run_id, prompt_id, step, rank, token, exp(logprob) AS probability
FROM top_tokens
WHERE list_contains($runs, run_id)
ORDER BY run_id, prompt_id, step, rank
