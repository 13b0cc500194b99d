-- How much of the lake a look through one layer and site of all runs reads.
SELECT count(DISTINCT s.run_id) AS runs, coalesce(sum(p.tokens), 0)::BIGINT AS vectors
FROM sites AS s
JOIN (SELECT t.run_id, count(t.step) AS tokens FROM tokens AS t GROUP BY t.run_id) AS p ON p.run_id = s.run_id
WHERE s.layer = $layer AND s.site = $site AND s.width IS NOT NULL
