-- What the person who reads a run should know about it.
SELECT run_id, code, message FROM run_warnings($runs) ORDER BY run_id
