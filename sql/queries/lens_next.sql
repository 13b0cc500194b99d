-- The token that follows each position of a run.
SELECT prompt_id, position - 1 AS position, token_id
FROM tokens
WHERE run_id = $run;
