-- How the prompts of a dataset were read, and in how many batches.
SELECT way, count(*) AS prompts, count(DISTINCT (shard, batch)) AS batches FROM batches WHERE run_id = $run
GROUP BY way ORDER BY prompts DESC, way
