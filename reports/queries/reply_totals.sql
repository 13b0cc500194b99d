-- How far the replies of all conversations moved the state, like with like.
SELECT count(*) AS conversations, avg(cosine) AS cosine, stddev_pop(cosine) AS std, min(cosine) AS least,
       arg_min({'run_id': run_id, 'prompt_id': prompt_id}, (cosine, run_id, prompt_id)) AS least_of,
       max(cosine) AS most, avg(cosine_before) AS cosine_before, max(layers) AS layers
FROM reply_summary_rows
WHERE cosine IS NOT NULL
HAVING count(*) > 0
