-- The prompts of a dataset that were read.
SELECT prompt_id FROM prompts WHERE run_id = $run ORDER BY prompt_id
