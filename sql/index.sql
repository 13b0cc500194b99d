-- What the lake holds, as constants that DuckDB folds while it plans a query. alab writes this file's
-- placeholders anew after each change of the lake, so that views and macros open the right files and no others,
-- in any DuckDB and from any directory.

-- Folder of the lake: the variable `alab_lake` where one is set, else the place where alab last saw it.
-- @returns VARCHAR, an absolute path
-- @example select _lake() is not null
CREATE OR REPLACE MACRO _lake() AS coalesce(getvariable('alab_lake'), $lake);

-- Id of the newest run; NULL in an empty warehouse.
-- @returns VARCHAR
-- @example select _latest_run() is null or _latest_run() <> ''
CREATE OR REPLACE MACRO _latest_run() AS $latest_run;

-- Id of the newest run of a scenario.
-- @param scenario name of a scenario
-- @returns VARCHAR, NULL where there is no run of it
-- @example select _latest_of('no such scenario') is null
CREATE OR REPLACE MACRO _latest_of(scenario) AS map_extract_value($latest_of, scenario);

-- Ids of all runs, newest first, each between bars: `|b|a|`.
-- @returns VARCHAR, empty where there are none
-- @example select _run_names() is not null
CREATE OR REPLACE MACRO _run_names() AS $run_names;

-- Where alab last saw this catalog: its absolute path, and the same with links resolved.
-- @returns VARCHAR[]
-- @example select len(_places()) = 2
CREATE OR REPLACE MACRO _places() AS $places;

-- Ids of the runs that have files in a dataset, each between bars: `|a|b|`; for `models`, keys of models.
-- @param dataset name of a dataset of the lake, such as states, or models
-- @returns VARCHAR, empty where no run has any
-- @example select _runs_with('states') is not null
CREATE OR REPLACE MACRO _runs_with(dataset) AS coalesce(map_extract_value($runs_with, dataset), '');

-- Files of a run in a dataset.
-- @param dataset name of a dataset of the lake
-- @param run its id; `*` for all runs
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR[], paths or patterns
-- @example select len(_files_in('states', 'no such run', '/*.parquet')) < 2
CREATE OR REPLACE MACRO _files_in(dataset, run, tail) AS [_lake() || '/' || dataset || '/run=' || run || tail];

-- What the weights of a run, or of a model's newest run, are kept by: their fingerprint, or the model's name where the
-- run was captured by an alab that took no fingerprints; NULL where the name is unknown.
-- @param name a run id, or a model as `runs.model_id` names it
-- @returns VARCHAR
-- @example select _kept_as('no such run') is null
CREATE OR REPLACE MACRO _kept_as(name) AS
  nullif(split_part(split_part($kept_as, '|' || name || '|>', 2), '|', 1), '');

-- A path without `.`, `..` and doubled slashes, which some versions of DuckDB keep in a database's path.
-- @param path a path, in which up to four `..` follow each other
-- @returns VARCHAR
-- @example select _plain_path('/a/./b//../c/d/e/../../alab.duckdb') = '/a/c/alab.duckdb'
CREATE OR REPLACE MACRO _plain_path(path) AS
  regexp_replace(regexp_replace(regexp_replace(regexp_replace(
    regexp_replace(path, '/(\.?/)+', '/', 'g'),
    '/[^/]+/\.\./', '/'), '/[^/]+/\.\./', '/'), '/[^/]+/\.\./', '/'), '/[^/]+/\.\./', '/');

-- Whether this catalog is where alab last saw it; if it is elsewhere, the lake that it names may be another's.
--
-- A warehouse that was copied still names the original's lake, of which nothing is to be read in silence. A lake at a
-- URL is the same from everywhere.
-- @returns BOOLEAN, true; an error that says what to do where the catalog is elsewhere
-- @example select _in_place()
CREATE OR REPLACE MACRO _in_place() AS
  CASE WHEN getvariable('alab_lake') IS NOT NULL OR contains(_lake(), '://') THEN true
       WHEN (SELECT coalesce(bool_or(list_contains(_places(), _plain_path(d.path))), false)
             FROM duckdb_databases() AS d) THEN true
       ELSE error('this alab.duckdb was copied or moved, or was attached by a relative path: it names the lake '
                  || _lake() || '. Let alab mend it (alab -w ITS_FOLDER runs), give its full path, or say which lake '
                  || 'to read: SET VARIABLE alab_lake = ''/its/folder/lake''') END;

-- Rows of files below a folder of their run.
-- @param paths path patterns
-- @column run id of the run; the other columns are those of the files
-- @example select run from _rows_of(_lake() || '/.empty/states/run=*/*.parquet')
CREATE OR REPLACE MACRO _rows_of(paths) AS TABLE
SELECT f.*
FROM read_parquet(paths, hive_partitioning = true, hive_types = {'run': VARCHAR}, hive_types_autocast = false) AS f
WHERE _in_place();

-- Rows of files below folders of their run, steps and layer.
-- @param paths path patterns
-- @column run id of the run; the other columns are those of the files
-- @column layer 0-based decoder block
-- @example select run, layer from _rows_by_layer(_lake() || '/.empty/attention/run=*/steps=*/layer=*/*.parquet')
CREATE OR REPLACE MACRO _rows_by_layer(paths) AS TABLE
SELECT f.*
FROM read_parquet(paths, hive_partitioning = true,
                  hive_types = {'run': VARCHAR, 'steps': VARCHAR, 'layer': INTEGER}) AS f
WHERE _in_place();
