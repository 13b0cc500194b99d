-- The files of each dataset and run, for `index_at_url.sql`: `|states/run=a>part-0.parquet|states/run=b>…|`.
SELECT coalesce('|' || string_agg(folder || '>' || names, '|' ORDER BY folder) || '|', '')
FROM (
  SELECT dataset || '/run=' || run_id AS folder,
         string_agg(substr(path, len(dataset || '/run=' || run_id) + 2), '>' ORDER BY path) AS names
  FROM files
  WHERE dataset <> 'metadata'
  GROUP BY ALL
);
