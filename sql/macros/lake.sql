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

-- The ids that the argument `run_id` of an analysis stands for, each once; an empty one where there are none.
-- @param run a run id, `latest`, or a list of these
-- @returns VARCHAR[]
-- @example select _run_ids('a_run') = ['a_run'] and len(_run_ids(['a_run', 'another', 'a_run'])) = 2
-- @example select _run_ids([]) = ['']
CREATE OR REPLACE MACRO _run_ids(run) AS
  list_distinct([coalesce(resolve_run(one), '') FOR one IN
    CASE WHEN json_type(to_json(run)) = 'ARRAY'
         THEN coalesce(nullif(json_extract_string(to_json(run), '$[*]'), []), [''])
         ELSE [json_extract_string(to_json(run), '$')] END]);

-- Files of some runs in a dataset, as path patterns; a file without rows for a run that has none.
-- @param dataset name of a dataset of the lake
-- @param run a run id, `latest`, or a list of these
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR[]
-- @example select _files_of('states', 'no such run', '/*.parquet')[1] like '%/.empty/states/%'
CREATE OR REPLACE MACRO _files_of(dataset, run, tail) AS
  [_lake() || CASE WHEN _has(dataset, one) THEN '/' || dataset || '/run=' || one
                   ELSE '/.empty/' || dataset || '/run=0' END || tail
   FOR one IN _run_ids(run)];

-- Files of all runs in a dataset, as a path pattern; a file without rows where there are none.
-- @param dataset name of a dataset of the lake
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR
-- @example select _files_of_all('states', '/*.parquet') is not null
CREATE OR REPLACE MACRO _files_of_all(dataset, tail) AS
  CASE WHEN _runs_with(dataset) = '' THEN _lake() || '/.empty/' || dataset || '/run=0' || tail
       ELSE _lake() || '/' || dataset || '/run=*' || tail END;
