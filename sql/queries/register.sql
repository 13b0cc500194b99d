-- The rows of new runs, into every table but `files`: of each table the files of all runs at once, since a statement
-- for each run took 30 ms a run. Older runs lack newer columns.
INSERT INTO layers BY NAME
  FROM read_parquet($layers, hive_partitioning = false, union_by_name = true);
INSERT INTO messages BY NAME
  FROM read_parquet($messages, hive_partitioning = false, union_by_name = true);
INSERT INTO prompts BY NAME
  FROM read_parquet($prompts, hive_partitioning = false, union_by_name = true);
INSERT INTO reference_states BY NAME
  FROM read_parquet($reference_states, hive_partitioning = false, union_by_name = true);
INSERT INTO runs BY NAME
  FROM read_parquet($runs, hive_partitioning = false, union_by_name = true);
INSERT INTO sites BY NAME
  FROM read_parquet($sites, hive_partitioning = false, union_by_name = true);
INSERT INTO snapshots BY NAME
  FROM read_parquet($snapshots, hive_partitioning = false, union_by_name = true);
INSERT INTO state_tokens BY NAME
  FROM read_parquet($state_tokens, hive_partitioning = false, union_by_name = true);
INSERT INTO steps BY NAME
  FROM read_parquet($steps, hive_partitioning = false, union_by_name = true);
INSERT INTO tokens BY NAME
  FROM read_parquet($tokens, hive_partitioning = false, union_by_name = true);
INSERT INTO top_tokens BY NAME
  FROM read_parquet($top_tokens, hive_partitioning = false, union_by_name = true);
INSERT INTO warnings BY NAME
  FROM read_parquet($warnings, hive_partitioning = false, union_by_name = true);

INSERT INTO positions BY NAME
  FROM read_parquet($positions, hive_partitioning = false, union_by_name = true);

INSERT INTO batches BY NAME
  FROM read_parquet($batches, hive_partitioning = false, union_by_name = true);
