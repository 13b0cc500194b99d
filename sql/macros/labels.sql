-- A label as text, the same for equal values whatever their type: a whole number has no `.0`.
--
-- A table turns whole numbers into others where some are missing, so `1` is to find `1.0`.
-- @param label the label as JSON
-- @returns VARCHAR; NULL for null and NaN, which is how tables of numbers say that there is none
-- @example select _label_text(to_json(1.0::DOUBLE)) = '1' and _label_text(to_json(1)) = '1'
-- @example select _label_text(to_json('1.0')) = '1.0' and _label_text(to_json(true)) = 'true'
-- @example select _label_text(to_json('nan'::DOUBLE)) is null and _label_text(to_json('NaN')) = 'NaN'
CREATE OR REPLACE MACRO _label_text(label) AS
  CASE WHEN json_type(label) = 'DOUBLE'
       THEN nullif(regexp_replace(json_extract_string(label, '$'), '\.0$', ''), 'NaN')
       ELSE json_extract_string(label, '$') END;

-- Where a column is in a row that `to_json` gave.
-- @param name name of a column, of any characters
-- @returns VARCHAR, a JSON pointer
-- @example select json_extract_string('{"a/b \"c\"": 1}', _pointer('a/b "c"')) = '1'
CREATE OR REPLACE MACRO _pointer(name) AS '/' || replace(replace(name, '~', '~0'), '/', '~1');

-- Files of some runs in a dataset, or one without rows where they are not wanted, so that none of them is opened.
-- @param wanted whether they are
-- @param dataset name of a dataset of the lake
-- @param run what `resolve_run` takes, or a list of these
-- @param tail pattern below a run's folder, such as `/*.parquet`
-- @returns VARCHAR[]
-- @example select len(_files_if(false, 'states', ['one', 'another'], '/*.parquet')) = 1
CREATE OR REPLACE MACRO _files_if(wanted, dataset, run, tail) AS
  CASE WHEN wanted THEN _files_of(dataset, run, tail)
       ELSE [_lake() || _empty(dataset, tail)] END;
