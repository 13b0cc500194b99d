-- What the model held likeliest after the pass that read a token: the token's own where the pass ends with it.
SELECT t.rank, t.token, exp(t.logprob) AS probability, s.seq_len - 1 AS after_position, t.step
FROM top_tokens AS t
JOIN tokens AS n ON n.run_id = t.run_id AND n.prompt_id = t.prompt_id AND n.step = t.step AND n.position = $position
JOIN steps AS s ON s.run_id = t.run_id AND s.prompt_id = t.prompt_id AND s.step = t.step
WHERE t.run_id = $run AND t.prompt_id = $prompt AND t.rank < 10
ORDER BY t.rank
