-- Why pairs of these runs were left out, and how many for each reason.
SELECT reason, count(*) AS pairs
FROM run_pairs()
WHERE NOT comparable AND list_contains($runs, run_a) AND list_contains($runs, run_b)
GROUP BY reason
ORDER BY pairs DESC, reason
