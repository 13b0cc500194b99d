-- One row per file of a run in the lake.
CREATE TABLE IF NOT EXISTS files (
  run_id VARCHAR,         -- id of the run
  dataset VARCHAR,        -- activations, attention, outputs, states, metadata, …
  path VARCHAR,           -- path relative to the lake
  first_step INTEGER,     -- first step in the file; NULL where steps do not apply
  last_step INTEGER,      -- last step in the file
  layer INTEGER,          -- layer of the file; NULL where layers do not apply
  n_rows BIGINT,          -- rows
  n_bytes BIGINT,         -- size in bytes
  sha256 VARCHAR          -- checksum of the file's bytes; NULL for bulky datasets
);
