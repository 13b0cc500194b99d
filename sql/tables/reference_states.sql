-- One row per reference: a short labelled conversation whose last-token state others are compared with.
CREATE TABLE IF NOT EXISTS reference_states (
  run_id VARCHAR,       -- id of the run
  label VARCHAR,        -- label of the reference, unique within the run
  ref_index INTEGER,    -- 0-based place in the scenario
  messages VARCHAR,     -- the reference's messages, as JSON
  n_tokens INTEGER,     -- tokens in the rendered conversation; of several examples, of all together
  n INTEGER             -- examples that the reference is the mean of; NULL in runs of older alabs, which had one each
);
