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

-- Ids of the runs that have files in a dataset, each between bars: `|a|b|`; for `models`, keys of models.
-- @param dataset name of a dataset of the lake, such as states, or models
-- @returns VARCHAR, empty where no run has any
-- @example select _runs_with('states') is not null
CREATE OR REPLACE MACRO _runs_with(dataset) AS coalesce(map_extract_value($runs_with, dataset), '');

-- What the weights of a run, or of a model's newest run, are kept by: their fingerprint, or the model's name where the
-- run was captured by an alab that took no fingerprints; NULL where the name is unknown.
-- @param name a run id, or a model as `runs.model_id` names it
-- @returns VARCHAR
-- @example select _kept_as('no such run') is null
CREATE OR REPLACE MACRO _kept_as(name) AS
  nullif(split_part(split_part($kept_as, '|' || name || '|>', 2), '|', 1), '');
