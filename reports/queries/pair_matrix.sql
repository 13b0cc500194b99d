-- Every run against every other in both orders: mean over layers and conversations, per state and site.
WITH means AS (
  SELECT c.run_a, c.run_b, state, site, avg(cosine) AS cosine, avg(mae) AS mae, avg(jaccard) AS jaccard
  FROM inter_run_among($runs) AS c
  GROUP BY c.run_a, c.run_b, state, site
)
SELECT * FROM means
UNION ALL
SELECT run_b, run_a, state, site, cosine, mae, jaccard FROM means
ORDER BY state, site, run_a, run_b
