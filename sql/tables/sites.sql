-- One row per layer and site of a run: where the tensor was taken, or why there is none.
CREATE TABLE IF NOT EXISTS sites (
  run_id VARCHAR,           -- id of the run
  layer INTEGER,            -- 0-based decoder block; NULL for embeddings and logits
  site VARCHAR,             -- name of the site
  module VARCHAR,           -- module and port the tensor was taken from; NULL where the site was not captured
  width INTEGER,            -- width of the vectors; NULL where the site was not captured
  reason VARCHAR,           -- why the site was not captured; NULL where it was
  n_out_of_range BIGINT,    -- values outside the range of store_dtype, kept unrounded
  n_nonfinite BIGINT        -- NaN and infinite values that the model itself produced
);
