-- Tokens of the longest sequence of a run.
SELECT max(seq_len) AS longest FROM steps WHERE run_id = $run
