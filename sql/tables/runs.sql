-- One row per run: what was asked, with which model, where, and when.
CREATE TABLE IF NOT EXISTS runs (
  run_id VARCHAR PRIMARY KEY,   -- id of the run: `<scenario name>_<UTC timestamp>`
  scenario VARCHAR,             -- name of the scenario
  model_id VARCHAR,             -- model as the scenario names it: hub id, directory or `package:NAME`
  revision VARCHAR,             -- commit of the hub that was loaded; NULL for other models
  adapter VARCHAR,              -- adapter that was loaded on top, as the scenario names it; NULL without one
  weights_hash VARCHAR,         -- fingerprint of the weights that ran, adapter included; NULL in runs of older alabs and of other tools
  dataset_hash VARCHAR,         -- SHA-256 of the dataset that was read: the request, its files' bytes, the rows; else NULL
  arch VARCHAR,                 -- model class, such as LlamaForCausalLM
  num_layers INTEGER,           -- decoder blocks in the model
  hidden_size INTEGER,          -- width of the residual stream
  num_heads INTEGER,            -- attention (query) heads per layer
  num_kv_heads INTEGER,         -- key-value heads per layer
  head_dim INTEGER,             -- dimensions per head
  vocab_size INTEGER,           -- width of the logits
  dtype VARCHAR,                -- precision that the model computed in
  device VARCHAR,               -- device that the model ran on
  store_dtype VARCHAR,          -- precision that values were rounded to before writing
  seed BIGINT,                  -- seed of the sampling generator
  created_at TIMESTAMP,         -- when the capture began, UTC
  finished_at TIMESTAMP,        -- when the last tensor was written, UTC
  scenario_json VARCHAR,        -- the scenario with every default filled in, as JSON
  env_json VARCHAR,             -- versions of Python and the libraries, platform, as JSON
  tokenizer_json VARCHAR,       -- tokenizer class, special tokens and chat template, as JSON
  bytes BIGINT                  -- bytes of the run's tensors in the lake
);
