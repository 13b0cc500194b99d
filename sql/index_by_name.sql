-- The readers of `index.sql` once more, for a lake below folders such as `layer=3`, which DuckDB takes for the lake's
-- own. These take a run and a layer from a file's name, where the last folder of the kind counts. Queries that name
-- runs and layers open the same files; one that joins with them opens all.

-- Rows of files below a folder of their run.
-- @param paths path patterns
-- @column run id of the run; the other columns are those of the files
-- @example select run from _rows_of(_lake() || '/.empty/states/run=*/*.parquet')
CREATE OR REPLACE MACRO _rows_of(paths) AS TABLE
SELECT regexp_extract(f.filename, '.*/run=([^/]*)/', 1) AS run, f.* EXCLUDE (filename)
FROM read_parquet(paths, hive_partitioning = false, filename = true) AS f
WHERE _in_place();

-- Rows of files below folders of their run, steps and layer.
-- @param paths path patterns
-- @column run id of the run; the other columns are those of the files
-- @column layer 0-based decoder block
-- @example select run, layer from _rows_by_layer(_lake() || '/.empty/attention/run=*/steps=*/layer=*/*.parquet')
CREATE OR REPLACE MACRO _rows_by_layer(paths) AS TABLE
SELECT regexp_extract(f.filename, '.*/run=([^/]*)/', 1) AS run,
       regexp_extract(f.filename, '.*/layer=([^/]*)/', 1)::INTEGER AS layer, f.* EXCLUDE (filename)
FROM read_parquet(paths, hive_partitioning = false, filename = true) AS f
WHERE _in_place();
