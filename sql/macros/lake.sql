-- The id that a run's name stands for: `latest` is the newest run, anything else is itself.
-- @param run a run id or `latest`
-- @returns VARCHAR
-- @example select resolve_run('a_run')
CREATE OR REPLACE MACRO resolve_run(run) AS CASE WHEN run = 'latest' THEN _latest_run() ELSE run END;

-- Whether a run has files in a dataset.
-- @param dataset name of a dataset of the lake
-- @param run id of a run
-- @returns BOOLEAN
-- @example select not _has('states', 'no such run')
CREATE OR REPLACE MACRO _has(dataset, run) AS contains(_runs_with(dataset), '|' || run || '|');

-- Files of one run in a dataset, as a path pattern; a file without rows where the run has none.
-- @param dataset name of a dataset of the lake
-- @param run a run id or `latest`
-- @param tail pattern below the run's folder, such as `/*.parquet`
-- @returns VARCHAR
-- @example select _files_of('states', 'no such run', '/*.parquet') like '%/.empty/states/%'
CREATE OR REPLACE MACRO _files_of(dataset, run, tail) AS
  CASE WHEN _has(dataset, resolve_run(run))
       THEN _lake() || '/' || dataset || '/run=' || resolve_run(run) || tail
       ELSE _lake() || '/.empty/' || dataset || '/run=0' || tail END;

-- Files of all runs in a dataset, as a path pattern; a file without rows where there are none.
-- @param dataset name of a dataset of the lake
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR
-- @example select _files_of_all('states', '/*.parquet') is not null
CREATE OR REPLACE MACRO _files_of_all(dataset, tail) AS
  CASE WHEN _runs_with(dataset) = '' THEN _lake() || '/.empty/' || dataset || '/run=0' || tail
       ELSE _lake() || '/' || dataset || '/run=*' || tail END;
