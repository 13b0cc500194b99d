-- One row per step and rank: the most likely next tokens.
CREATE TABLE IF NOT EXISTS top_tokens (
  run_id VARCHAR,       -- id of the run
  prompt_id INTEGER,    -- 0-based conversation within the run
  step INTEGER,         -- 0-based forward pass
  rank INTEGER,         -- 0 for the most likely token
  token_id INTEGER,     -- id in the tokenizer's vocabulary
  token VARCHAR,        -- text of the token, a leading space included; bytes that are no text alone as `<0xE2>`
  logprob DOUBLE        -- log-probability, nats
);
