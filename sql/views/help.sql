-- Everything that this file offers, with its documentation: `from help`, or `from help where name = 'cosine'`.
--
-- What is meant for you comes first; what it is built of, with names that begin with `_`, comes last.
-- Tables, macros and views of your own are listed too; `COMMENT ON` documents them.
-- @column kind table, view, macro (gives a value) or analysis (gives rows)
-- @column name name of the object; names that begin with `_` are private
-- @column arguments arguments of a macro or analysis
-- @column summary first paragraph of the documentation
-- @column documentation the whole documentation
-- @example select name, summary from help where kind = 'analysis'
CREATE OR REPLACE VIEW help AS
WITH objects AS (
  SELECT DISTINCT ON (function_name) CASE function_type WHEN 'macro' THEN 'macro' ELSE 'analysis' END AS kind,
         function_name AS name, array_to_string(parameters, ', ') AS arguments, comment
  FROM duckdb_functions()
  WHERE NOT internal AND function_type IN ('macro', 'table_macro') AND database_name = current_database()
  UNION ALL
  SELECT 'view', view_name, '', comment FROM duckdb_views()
  WHERE NOT internal AND database_name = current_database()
  UNION ALL
  SELECT 'table', t.table_name, '', t.comment || coalesce(chr(10) || chr(10) || c.columns, '')
  FROM duckdb_tables() AS t LEFT JOIN (
    SELECT table_name, string_agg('column ' || column_name || ': ' || coalesce(comment, data_type), chr(10)
                                  ORDER BY column_index) AS columns
    FROM duckdb_columns() WHERE NOT internal AND database_name = current_database()
    GROUP BY table_name) AS c ON c.table_name = t.table_name
  WHERE NOT t.internal AND t.database_name = current_database()
)
SELECT kind, name, arguments,
       replace(split_part(comment, chr(10) || chr(10), 1), chr(10), ' ') AS summary,
       comment AS documentation
FROM objects
ORDER BY starts_with(name, '_'), list_position(['analysis', 'macro', 'view', 'table'], kind), name;
