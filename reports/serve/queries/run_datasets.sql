-- What a run keeps in the lake, by dataset, the largest first; bulky are the tensors of every token.
SELECT dataset, count(*) AS files, CAST(sum(n_rows) AS BIGINT) AS n_rows, CAST(sum(n_bytes) AS BIGINT) AS n_bytes
FROM files WHERE run_id = $run GROUP BY dataset ORDER BY n_bytes DESC, dataset
