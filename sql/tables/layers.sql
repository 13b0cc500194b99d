-- One row per captured layer of a run: what kind it is, and how exactly its residual adds up.
CREATE TABLE IF NOT EXISTS layers (
  run_id VARCHAR,           -- id of the run
  layer INTEGER,            -- 0-based decoder block
  module VARCHAR,           -- path of the block in the model, such as model.layers.0
  residual_error DOUBLE     -- largest |hidden_out − hidden_in − attn_out − mlp_down_out| over the run, relative to the largest |hidden_out|; NULL where a part was not captured
);
