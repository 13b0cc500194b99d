-- One row per position of a dataset run that a selector keeps: which token of a prompt its vectors are of.
CREATE TABLE IF NOT EXISTS positions (
  run_id VARCHAR,       -- id of the run
  prompt_id INTEGER,    -- 0-based row of the dataset
  selector VARCHAR,     -- last, all, message_ends, or the template's field whose last token this is
  position INTEGER      -- 0-based place of the token in the prompt
);
