-- What the model itself gave the most likely token after each step, in nats; 0.1 noted no such number.
SELECT prompt_id, step, seq_len - 1 AS position, argmax_logprob
FROM steps
WHERE run_id = $run AND argmax_logprob <= 0;
