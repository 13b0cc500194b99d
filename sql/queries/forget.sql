-- The rows of some runs, out of every table.
DELETE FROM runs WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM catalog_runs WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM files WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM layers WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM messages WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM prompts WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM reference_states WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM sites WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM snapshots WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM state_tokens WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM steps WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM tokens WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM top_tokens WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM warnings WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM positions WHERE run_id IN (SELECT unnest($run_ids));
DELETE FROM batches WHERE run_id IN (SELECT unnest($run_ids));
