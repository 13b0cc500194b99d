-- The next-token distribution of every forward pass.
SELECT run_id, prompt_id, step, kind, generated_token AS token, entropy, top1_prob
FROM steps
WHERE list_contains($runs, run_id)
ORDER BY run_id, prompt_id, step
