-- One row per registered run: which version of its metadata the catalog has.
CREATE TABLE IF NOT EXISTS catalog_runs (
  run_id VARCHAR,   -- id of the run
  version BIGINT    -- when the run's metadata in the lake last changed, nanoseconds since 1970
);
