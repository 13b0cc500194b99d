-- What the person who reads a run should know about it.
SELECT code, message FROM run_warnings($run)
