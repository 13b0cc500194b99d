-- How many prompts of a dataset have each length in tokens.
SELECT n_prompt_tokens AS tokens, count(*) AS prompts FROM prompts WHERE run_id = $run GROUP BY tokens ORDER BY tokens
