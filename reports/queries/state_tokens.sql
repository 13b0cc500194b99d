-- The token that each state of the conversations sits on.
SELECT run_id, prompt_id, state, state_index, n_tokens, position, token, kind
FROM state_tokens_of($runs)
WHERE prompt_id IS NOT NULL
