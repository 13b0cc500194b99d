-- The next-token distribution of every forward pass.
SELECT prompt_id, step, kind, generated_token AS token, entropy, top1_prob
FROM steps
WHERE run_id = $run
ORDER BY prompt_id, step
