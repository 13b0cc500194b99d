-- One row per prompt of a dataset run: which prompts it was read together with, as the batch plan has it.
CREATE TABLE IF NOT EXISTS batches (
  run_id VARCHAR,       -- id of the run
  prompt_id INTEGER,    -- 0-based row of the dataset
  shard INTEGER,        -- 0-based part of the run that is written at once
  batch INTEGER,        -- 0-based batch within the shard
  way VARCHAR,          -- batch (side by side, padded), tree (what prompts begin with alike was read once) or alone
  padded INTEGER        -- tokens of the longest prompt in the batch; the others are filled up to it where the way is batch
);
