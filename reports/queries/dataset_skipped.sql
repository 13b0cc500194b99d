-- Rows of a dataset that were left out, and what else was different from what was asked: the first of each kind.
SELECT code, count(*) AS rows, list(message ORDER BY prompt_id)[:$messages] AS messages
FROM warnings WHERE run_id = $run AND code IN ('skipped', 'batch') GROUP BY code ORDER BY code DESC
