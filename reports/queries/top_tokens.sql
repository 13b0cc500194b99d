-- The most likely next tokens of every forward pass.
SELECT prompt_id, step, rank, token, exp(logprob) AS probability
FROM top_tokens
WHERE run_id = $run
ORDER BY prompt_id, step, rank
