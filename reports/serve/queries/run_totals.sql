-- How much a run read and wrote.
SELECT count(*) AS prompts, CAST(coalesce(sum(n_prompt_tokens), 0) AS BIGINT) AS tokens_read,
       CAST(coalesce(sum(n_generated), 0) AS BIGINT) AS tokens_written,
       count(*) FILTER (stop_reason = 'length' AND n_generated > 0) AS cut
FROM prompts WHERE run_id = $run
