-- One row per token of a conversation: the prompt's, then the generated ones.
CREATE TABLE IF NOT EXISTS tokens (
  run_id VARCHAR,             -- id of the run
  prompt_id INTEGER,          -- 0-based conversation within the run
  step INTEGER,               -- forward pass that read the token; NULL for the last generated token, which no pass read
  position INTEGER,           -- 0-based place in the whole sequence
  token_id INTEGER,           -- id in the tokenizer's vocabulary
  token VARCHAR,              -- text of the token; the vocabulary's own spelling where it is not valid UTF-8 alone
  message_index INTEGER,      -- message that the token belongs to; NULL for the generation prompt
  role VARCHAR,               -- role of that message; assistant for the generation prompt
  is_template BOOLEAN,        -- true for tokens that the chat template adds around the content
  is_generated BOOLEAN        -- true for tokens that the model generated in this run
);
