-- One row per reference: a short labelled conversation whose last-token state others are compared with, or the mean
-- over several with the same label, its examples.
CREATE TABLE IF NOT EXISTS reference_states (
  run_id VARCHAR,       -- id of the run
  label VARCHAR,        -- label of the reference, unique within the run
  ref_index INTEGER,    -- 0-based place among the labels, in the order of their first examples
  messages VARCHAR,     -- the reference's messages, as JSON; of several examples a list of such lists
  n_tokens INTEGER,     -- tokens in the rendered conversation; of several examples, of all together
  n INTEGER             -- examples that the reference is the mean of; NULL in runs of older alabs, which had one each
);
