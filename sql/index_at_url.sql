-- What takes the place of patterns where the lake is at a URL, so that no query lists the store: the files themselves.

-- The files of each dataset and run, between bars: `|states/run=a>part-0.parquet|…|`.
-- @returns VARCHAR
-- @example select _file_names() is not null
CREATE OR REPLACE MACRO _file_names() AS $files;

-- Files of a run in a dataset.
-- @param dataset name of a dataset of the lake
-- @param run its id; `*` for all runs
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR[], paths
-- @example select _files_in('states', 'no such run', '/*.parquet') = []
CREATE OR REPLACE MACRO _files_in(dataset, run, tail) AS
  flatten([[_lake() || '/' || dataset || '/run=' || one || '/' || file
            FOR file IN string_split(split_part(split_part(_file_names(), '|' || dataset || '/run=' || one || '>', 2),
                                                '|', 1), '>') IF file <> '']
           FOR one IN CASE WHEN run = '*' THEN string_split(trim(_runs_with(dataset), '|'), '|') ELSE [run] END]);
