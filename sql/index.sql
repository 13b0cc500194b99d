-- What the lake holds, as constants that DuckDB folds while it plans a query. alab writes this file's three
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
