-- The passes of a run whose tensors were kept, with the token that each wrote.
SELECT s.prompt_id, s.step, s.kind, s.generated_token AS token
FROM steps AS s WHERE s.run_id = $run ORDER BY s.prompt_id, s.step
