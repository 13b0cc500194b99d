-- Where each state's residual stream settles, and where it arrives.
SELECT place, min(layer) FILTER (layer > unsettled) AS settles, min(layer) FILTER (layer > away) AS arrives, count(*) AS layers
FROM (
  SELECT *, coalesce(max(layer) FILTER (coalesce(cosine_adjacent, 0) < 0.99) OVER (PARTITION BY place), -1) AS unsettled,
         coalesce(max(layer) FILTER (coalesce(cosine_last, 0) < 0.9) OVER (PARTITION BY place), -1) AS away
  FROM convergence_by_ref($refs)
) GROUP BY place ORDER BY place
