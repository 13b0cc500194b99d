-- How many prompts of a dataset have which length in tokens, in at most 40 equal steps.
WITH ends AS (
  SELECT min(n_prompt_tokens) AS least, ceil((max(n_prompt_tokens) - min(n_prompt_tokens) + 1) / 40)::INTEGER AS step
  FROM prompts WHERE run_id = $run
)
SELECT least + step * ((n_prompt_tokens - least) // step) AS low, low + step - 1 AS high, count(*) AS prompts
FROM prompts, ends WHERE run_id = $run GROUP BY ALL ORDER BY low
