-- What the person who reads a run should know about it.
SELECT $run AS run_id, code, message FROM run_warnings($run)
