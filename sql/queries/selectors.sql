-- The selectors that mean something in some runs: those of datasets, and the two that every conversation has.
SELECT p.selector FROM positions AS p WHERE p.run_id IN (SELECT unnest($runs))
UNION SELECT 'mean' FROM (SELECT unnest($runs) AS run_id) AS r WHERE _has('labels', r.run_id)
UNION SELECT unnest(['all', 'last']) FROM (SELECT unnest($runs) AS run_id) AS r WHERE NOT _has('labels', r.run_id)
ORDER BY 1;
