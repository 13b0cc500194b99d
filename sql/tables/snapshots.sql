-- One row per snapshot: the state after the messages up to and including one of them. A message that the rendering of
-- those messages has not the words of has none.
CREATE TABLE IF NOT EXISTS snapshots (
  run_id VARCHAR,             -- id of the run
  prompt_id INTEGER,          -- 0-based conversation within the run
  message_index INTEGER,      -- last message that the snapshot has seen
  role VARCHAR,               -- role of that message
  preview VARCHAR,            -- first 80 characters of that message
  n_tokens INTEGER,           -- tokens seen, generation prompt included
  is_generated BOOLEAN        -- true for the snapshot after the generated reply, which averages leave out; it follows the tokens that were generated
);
