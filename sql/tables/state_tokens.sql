-- One row per state: the token that it sits on. A state tells of its token as well as of what came before it, so that
-- two states are best compared where they sit on tokens of one kind.
CREATE TABLE IF NOT EXISTS state_tokens (
  run_id VARCHAR,             -- id of the run
  prompt_id INTEGER,          -- 0-based conversation within the run; NULL for references, which belong to the whole run
  state VARCHAR,              -- initial, final, snapshot, reference or example
  state_index INTEGER,        -- as in the view `states`
  label VARCHAR,              -- label of a reference or example, else NULL
  n_tokens INTEGER,           -- tokens that were seen, the state's own included; NULL for a reference of several examples
  position INTEGER,           -- 0-based place of the state's token in its own sequence
  token_id INTEGER,           -- id in the tokenizer's vocabulary
  token VARCHAR,              -- text of the token
  role VARCHAR,               -- role of the message that the token belongs to; assistant for the generation prompt, NULL where the caller made the passes
  is_template BOOLEAN,        -- true for a token that the chat template adds around the content
  is_generated BOOLEAN        -- true for a token that the model generated in this run
);
