-- One row per token of a conversation: the prompt's, then the generated ones.
CREATE TABLE IF NOT EXISTS tokens (
  run_id VARCHAR,             -- id of the run
  prompt_id INTEGER,          -- 0-based conversation within the run
  step INTEGER,               -- forward pass that read the token; NULL for the last generated token, which no pass read
  position INTEGER,           -- 0-based place in the whole sequence
  token_id INTEGER,           -- id in the tokenizer's vocabulary
  token VARCHAR,              -- text of the token, a leading space included; bytes that make a character with a neighbour's as `<0xE2>`, so that a prompt's tokens join to its text, but for those without a role
  message_index INTEGER,      -- message whose words the token is of, or that the template adds it around; NULL for the generation prompt and for what the tokenizer adds
  role VARCHAR,               -- role of that message; assistant for the generation prompt, NULL for special tokens that the tokenizer adds to a text
  is_template BOOLEAN,        -- true for tokens without any of a message's words: the chat template's, or the tokenizer's own
  is_generated BOOLEAN        -- true for tokens that the model generated in this run
);
