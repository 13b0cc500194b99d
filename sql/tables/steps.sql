-- One row per forward pass: step 0 is the prefill, the others decode one token each.
CREATE TABLE IF NOT EXISTS steps (
  run_id VARCHAR,                 -- id of the run
  prompt_id INTEGER,              -- 0-based conversation within the run
  step INTEGER,                   -- 0-based forward pass of the conversation
  kind VARCHAR,                   -- prefill or decode
  seq_len INTEGER,                -- tokens in the sequence, this step's input included
  generated_token_id INTEGER,     -- token that was chosen, after what the model's generation_config asks for
  generated_token VARCHAR,        -- text of that token, spelled as in `tokens`
  argmax_token_id INTEGER,        -- most likely token
  argmax_logprob DOUBLE,          -- its log-probability, nats
  entropy DOUBLE,                 -- entropy of the next-token distribution, nats
  top1_prob DOUBLE                -- probability of the most likely token
);
