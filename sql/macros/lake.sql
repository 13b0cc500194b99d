-- The runs whose ids begin with a text, newest first.
-- @param start beginning of an id
-- @returns VARCHAR[], empty where there are none
-- @example select len(_runs_like('no such run')) = 0
CREATE OR REPLACE MACRO _runs_like(start) AS
  regexp_extract_all(_run_names(), '\|(' || regexp_escape(nullif(start, '')) || '[^|]*)', 1);

-- The id that a run's name stands for: `latest` is the newest run, `latest:NAME` the newest of a scenario, the
-- beginning of one id is that run, and anything else is itself.
-- @param run a run id, a unique prefix of one, `latest` or `latest:NAME`
-- @returns VARCHAR; an error that names the runs where a prefix is that of several
-- @example select resolve_run('a_run')
-- @example select run_id from runs where run_id = resolve_run('latest')
CREATE OR REPLACE MACRO resolve_run(run) AS
  CASE WHEN run = 'latest' THEN _latest_run()
       WHEN contains(_run_names(), '|' || run::VARCHAR || '|') THEN run
       WHEN starts_with(run, 'latest:') THEN coalesce(_latest_of(substr(run, 8)), run)
       WHEN len(_runs_like(run)) > 1
       THEN error('''' || run || ''' could be any of ' || len(_runs_like(run)) || ' runs: '
                  || array_to_string(_runs_like(run)[1:5], ', '))
       ELSE coalesce(_runs_like(run)[1], run) END;

-- Whether a run has files in a dataset.
-- @param dataset name of a dataset of the lake
-- @param run id of a run
-- @returns BOOLEAN
-- @example select not _has('states', 'no such run')
CREATE OR REPLACE MACRO _has(dataset, run) AS contains(_runs_with(dataset), '|' || run || '|');

-- The ids that the argument `run_id` of an analysis stands for, each once; an empty one where there are none.
-- @param run what `resolve_run` takes, or a list of these
-- @returns VARCHAR[]
-- @example select _run_ids('a_run') = ['a_run'] and len(_run_ids(['a_run', 'another', 'a_run'])) = 2
-- @example select _run_ids([]) = ['']
CREATE OR REPLACE MACRO _run_ids(run) AS
  list_distinct([coalesce(resolve_run(one), '') FOR one IN
    CASE WHEN json_type(to_json(run)) = 'ARRAY'
         THEN coalesce(nullif(json_extract_string(to_json(run), '$[*]'), []), [''])
         ELSE [json_extract_string(to_json(run), '$')] END]);

-- The file without rows that stands for a dataset where there are none, below the lake.
-- @param dataset name of a dataset of the lake
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR
-- @example select _empty('states', '/*.parquet') = '/.empty/states/run=0/0.parquet'
CREATE OR REPLACE MACRO _empty(dataset, tail) AS '/.empty/' || dataset || '/run=0' || replace(tail, '*', '0');

-- Files of some runs in a dataset, as paths or patterns; a file without rows for a run that has none.
-- @param dataset name of a dataset of the lake
-- @param run what `resolve_run` takes, or a list of these
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR[]
-- @example select _files_of('states', 'no such run', '/*.parquet')[1] like '%/.empty/states/%'
CREATE OR REPLACE MACRO _files_of(dataset, run, tail) AS
  flatten([CASE WHEN _has(dataset, one) THEN _files_in(dataset, one, tail) ELSE [_lake() || _empty(dataset, tail)] END
           FOR one IN _run_ids(run)]);

-- Files of all runs in a dataset, as paths or patterns; a file without rows where there are none.
-- @param dataset name of a dataset of the lake
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR[]
-- @example select _files_of_all('states', '/*.parquet') is not null
CREATE OR REPLACE MACRO _files_of_all(dataset, tail) AS
  CASE WHEN _runs_with(dataset) = '' THEN [_lake() || _empty(dataset, tail)] ELSE _files_in(dataset, '*', tail) END;
