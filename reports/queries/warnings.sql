-- What the person who reads a run should know about it.
SELECT run_id, code, message FROM warnings WHERE list_contains($runs, run_id) ORDER BY run_id, prompt_id, code
