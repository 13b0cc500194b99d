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

-- Fingerprint of the weights that a name stands for: those of a run, or those of a model's newest run; NULL where
-- the name is unknown, or where that run was captured by an alab that took no fingerprints.
-- @param name a run id, or a model as `runs.model_id` names it
-- @returns VARCHAR, as `runs.weights_hash` has it
-- @example select _weights_of('no such run') is null
CREATE OR REPLACE MACRO _weights_of(name) AS map_extract_value($weights_of, name);

-- The model that a run is of; NULL where there is no such run.
-- @param run id of a run
-- @returns VARCHAR, as `runs.model_id` has it
-- @example select _model_of('no such run') is null
CREATE OR REPLACE MACRO _model_of(run) AS map_extract_value($model_of, run);
