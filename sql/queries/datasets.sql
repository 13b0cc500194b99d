-- Which of some runs are dataset runs.
SELECT r.run_id FROM (SELECT unnest($runs) AS run_id) AS r WHERE _has('labels', r.run_id);
