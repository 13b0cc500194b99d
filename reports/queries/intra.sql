-- How far the reply moved each layer's state: generation prompt before and after it, last tokens of prompt and reply.
SELECT run_id, prompt_id, CASE prompt_id WHEN 0 THEN run_id ELSE run_id || ' · ' || prompt_id END AS run,
       compared, site, layer, cosine, mae, jaccard
FROM (
  SELECT r.*, 'generation prompt' AS compared FROM reply_shift($runs) AS r
  UNION ALL
  SELECT i.*, 'last token' FROM intra_run($runs) AS i
)
ORDER BY list_position($runs, run_id), prompt_id, compared, site, layer
