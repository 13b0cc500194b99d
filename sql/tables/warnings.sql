-- One row per thing that the person who reads a run should know about it.
CREATE TABLE IF NOT EXISTS warnings (
  run_id VARCHAR,       -- id of the run
  prompt_id INTEGER,    -- conversation that it concerns; NULL for the whole run
  code VARCHAR,         -- short name of the kind of warning, such as dtype or out_of_range
  message VARCHAR       -- the warning in words
);
