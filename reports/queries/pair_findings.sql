-- The runs that are least and most alike, and how alike all are: cosine, mean over the layers, in each state.
WITH pairs AS (
  SELECT state, run_a, run_b, avg(cosine_mean) AS cosine
  FROM pair_summary_rows WHERE site = $site GROUP BY ALL
)
SELECT state, count(*) AS pairs, avg(cosine) AS cosine,
       min(cosine) AS least, min_by(run_a, (cosine, run_a, run_b)) AS least_a, min_by(run_b, (cosine, run_a, run_b)) AS least_b,
       max(cosine) AS most, max_by(run_a, (cosine, run_a, run_b)) AS most_a, max_by(run_b, (cosine, run_a, run_b)) AS most_b
FROM pairs
WHERE cosine IS NOT NULL
GROUP BY state
ORDER BY state DESC
