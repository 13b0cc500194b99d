-- One row per message of a conversation, the generated reply last.
CREATE TABLE IF NOT EXISTS messages (
  run_id VARCHAR,             -- id of the run
  prompt_id INTEGER,          -- 0-based conversation within the run
  message_index INTEGER,      -- 0-based message within the conversation
  role VARCHAR,               -- system, user, assistant, tool or developer; text where the prompt is a text without messages
  content VARCHAR,            -- text of the message
  first_position INTEGER,     -- position of the message's first token, template tokens included; NULL where the rendering has none of it
  last_position INTEGER,      -- position of the message's last token, likewise; another message may stand between where a template rearranges them
  is_generated BOOLEAN        -- true for the reply that the model generated in this run
);
