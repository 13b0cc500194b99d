-- One row per conversation of a run.
CREATE TABLE IF NOT EXISTS prompts (
  run_id VARCHAR,             -- id of the run
  prompt_id INTEGER,          -- 0-based conversation within the run
  n_prompt_tokens INTEGER,    -- tokens in the prefill
  n_generated INTEGER,        -- tokens generated, an end-of-sequence token included
  stop_reason VARCHAR,        -- `eos` (an end-of-sequence token) or `length` (max_new_tokens); NULL where the caller made the passes
  prompt_text VARCHAR,        -- the prompt as rendered by the chat template, or as it was given; special tokens that the tokenizer adds are not in it
  generated_text VARCHAR,     -- the reply, special tokens dropped
  row_id VARCHAR              -- id of the dataset's row, as text; NULL in conversations
);
