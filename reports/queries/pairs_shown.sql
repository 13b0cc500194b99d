-- The least and the most alike pairs by the mean cosine of their final states, the least alike first.
SELECT run_a, run_b, avg(cosine_mean) AS cosine, row_number() OVER (ORDER BY avg(cosine_mean), run_a, run_b) AS place,
       count(*) OVER () AS pairs
FROM pair_summary_rows
WHERE state = 'final' OR run_a || ' ' || run_b NOT IN (SELECT run_a || ' ' || run_b FROM pair_summary_rows WHERE state = 'final')
GROUP BY run_a, run_b
QUALIFY place <= $each OR place > pairs - $each
ORDER BY place
