-- What a dataset run is of, in a row: its rows, columns and groups, the lengths, what was left out, and how right it is.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column source where the rows came from, as the scenario names it; NULL for a table from Python
-- @column prompts rows that were read
-- @column skipped rows that were left out; `run_warnings` says why
-- @column label_columns names of the dataset's columns, in their order
-- @column group_column column of what belongs together; NULL where the scenario names none
-- @column groups different values of it
-- @column selectors which positions were kept, as the scenario names them, and mean where there is one
-- @column tokens tokens of all prompts
-- @column tokens_min tokens of the shortest prompt
-- @column tokens_median median of the tokens of a prompt
-- @column tokens_max tokens of the longest prompt
-- @column alone prompts that were read one by one, not in batches
-- @column batch_error largest relative difference between a prompt read in its batch and alone, over a sample and the
--   layers; NULL where nothing was compared
-- @column batch_error_layer layer in which that is
-- @example select prompts, tokens_median, batch_error from dataset_overview('latest')
CREATE OR REPLACE MACRO dataset_overview(run_id) AS TABLE
WITH mine AS (
  SELECT r.run_id, json_extract_string(r.scenario_json, '$.prompt[0].dataset.source') AS source,
         json_extract_string(r.scenario_json, '$.prompt[0].dataset.group') AS group_column
  FROM runs AS r JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON r.run_id = asked
  WHERE _has('labels', r.run_id)
), rows AS (
  SELECT f.run_id, any_value(json_keys(f.fields)[3:]) AS label_columns, any_value(m.group_column) AS group_column,
         count(DISTINCT json_extract_string(f.fields, _pointer(m.group_column))) AS groups
  FROM _label_fields(run_id) AS f JOIN mine AS m ON m.run_id = f.run_id
  GROUP BY f.run_id
), lengths AS (
  SELECT p.run_id, count(*) AS prompts, sum(p.n_prompt_tokens)::BIGINT AS tokens, min(p.n_prompt_tokens) AS least,
         median(p.n_prompt_tokens) AS middle, max(p.n_prompt_tokens) AS most
  FROM prompts AS p JOIN mine AS m ON m.run_id = p.run_id
  GROUP BY p.run_id
), kept AS (
  SELECT p.run_id, list(DISTINCT p.selector ORDER BY p.selector) AS selectors
  FROM positions AS p JOIN mine AS m ON m.run_id = p.run_id
  GROUP BY p.run_id
), ways AS (
  SELECT b.run_id, count(*) FILTER (b.way = 'alone') AS alone FROM batches AS b GROUP BY b.run_id
), errors AS (
  SELECT l.run_id, max(l.batch_error) AS batch_error,
         max_by(l.layer, (l.batch_error, -l.layer)) FILTER (l.batch_error IS NOT NULL) AS layer
  FROM layers AS l GROUP BY l.run_id
), lost AS (
  SELECT w.run_id, count(*) AS skipped FROM warnings AS w WHERE w.code = 'skipped' GROUP BY w.run_id
), means AS (
  SELECT DISTINCT s.run_id FROM _means_of(run_id, true) AS s WHERE s.site <> 'hidden_in' OR s.layer > 0
)
SELECT m.run_id, m.source, coalesce(n.prompts, 0) AS prompts, coalesce(w.skipped, 0) AS skipped, r.label_columns,
       m.group_column, CASE WHEN m.group_column IS NOT NULL THEN r.groups END AS groups,
       coalesce(k.selectors, []) || CASE WHEN a.run_id IS NULL THEN []::VARCHAR[] ELSE ['mean'] END AS selectors,
       n.tokens, n.least AS tokens_min, n.middle AS tokens_median, n.most AS tokens_max,
       coalesce(b.alone, 0) AS alone, e.batch_error, e.layer AS batch_error_layer
FROM mine AS m
LEFT JOIN rows AS r ON r.run_id = m.run_id
LEFT JOIN lengths AS n ON n.run_id = m.run_id
LEFT JOIN kept AS k ON k.run_id = m.run_id
LEFT JOIN ways AS b ON b.run_id = m.run_id
LEFT JOIN errors AS e ON e.run_id = m.run_id
LEFT JOIN lost AS w ON w.run_id = m.run_id
LEFT JOIN means AS a ON a.run_id = m.run_id
ORDER BY m.run_id;
