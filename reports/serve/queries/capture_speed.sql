-- How fast earlier runs of a model were here: seconds of a forward pass, and of a prompt of a dataset that was only read.
SELECT sum(seconds) FILTER (passes > 0) / sum(passes) FILTER (passes > 0) AS pass,
       sum(seconds) FILTER (passes = 0) / sum(prompts) FILTER (passes = 0) AS prompt
FROM (SELECT date_diff('millisecond', r.created_at, r.finished_at) / 1000 AS seconds,
             (SELECT count(*) FROM steps AS s WHERE s.run_id = r.run_id AND s.generated_token_id IS NOT NULL) AS passes,
             (SELECT count(*) FROM prompts AS p WHERE p.run_id = r.run_id) AS prompts
      FROM runs AS r
      WHERE r.model_id = $model AND r.finished_at > r.created_at
      ORDER BY r.created_at DESC
      LIMIT 20)
