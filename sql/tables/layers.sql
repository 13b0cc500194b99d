-- One row per captured layer of a run: what kind it is, and how exactly its residual adds up.
CREATE TABLE IF NOT EXISTS layers (
  run_id VARCHAR,           -- id of the run
  layer INTEGER,            -- 0-based decoder block
  module VARCHAR,           -- path of the block in the model, such as model.layers.0
  residual_error DOUBLE,    -- largest error of block output = hidden_in + attn_out + mlp_down_out over the run, of each token relative to its own largest value; NULL where a part was not captured
  continuity_error DOUBLE,  -- largest difference over the run between hidden_out and what was read of it next, likewise relative; NULL where that is unknown
  changed DOUBLE,           -- largest change that hooks on the block made to its output before it became hidden_out, likewise relative; 0 where there were none, NULL in runs of older alabs
  batch_error DOUBLE        -- of a dataset: largest ‖a − b‖ / ‖b‖ over a sample of the prompts, a read in its batch and b read alone; NULL in conversations
);
