-- The positions of a run's prompts that a selector keeps.
--
-- In a conversation, which keeps all, `last` and `all` are those of its prompt.
-- @param run_id a run id, `latest`, or a list of these
-- @param selector last, all, message_ends, or a field of the dataset's template
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset, or conversation
-- @column position 0-based place of the token in the prompt
-- @example select prompt_id, position from _positions_of('latest', 'last')
CREATE OR REPLACE MACRO _positions_of(run_id, selector) AS TABLE
SELECT p.run_id, p.prompt_id, p.position
FROM positions AS p JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON p.run_id = asked
WHERE p.selector = selector
UNION ALL
SELECT t.run_id, t.prompt_id,
       unnest(CASE selector WHEN 'last' THEN [t.n_prompt_tokens - 1]
                            WHEN 'all' THEN range(t.n_prompt_tokens)::INTEGER[] END) AS position
FROM prompts AS t JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON t.run_id = asked
WHERE selector IN ('last', 'all') AND t.n_prompt_tokens > 0 AND t.row_id IS NULL
  AND NOT EXISTS (SELECT 1 FROM positions AS p WHERE p.run_id = t.run_id);

-- One site of some runs at the positions that a selector keeps, in all layers.
--
-- Reads that site's column only. Where a query names layers, those of others are not opened.
-- @param run_id a run id, `latest`, or a list of these
-- @param site a site of `activations`, such as hidden_out
-- @param selector last, all, message_ends, or a field of the dataset's template; of mean there are no rows
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset, or conversation
-- @column position 0-based place of the token in the prompt
-- @column layer 0-based decoder block
-- @column vector the activation
-- @example select prompt_id, norm(vector) from _selected_of('latest', 'hidden_out', 'last') where layer = 1
CREATE OR REPLACE MACRO _selected_of(run_id, site, selector) AS TABLE
SELECT s.* FROM (
  SELECT t.run AS run_id, t.prompt_id, t.position, t.layer,
         _site_column(site, t.hidden_in, t.hidden_out, t.q, t.k, t.v, t.attn_out, t.mlp_gate, t.mlp_up,
                      t.mlp_down_in, t.mlp_down_out) AS vector
  FROM _rows_by_layer(_files_if(selector <> 'mean', 'activations', run_id, '/steps=*/layer=*/*.parquet')) AS t
) AS s
SEMI JOIN _positions_of(run_id, selector) AS p
  ON p.run_id = s.run_id AND p.prompt_id = s.prompt_id AND p.position = s.position
WHERE s.vector IS NOT NULL;

-- The means over the tokens of each prompt of some runs.
-- @param run_id a run id, `latest`, or a list of these
-- @param wanted whether there are to be rows; if not, nothing is opened
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset
-- @column position NULL
-- @column layer 0-based decoder block
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column vector the mean
-- @example select prompt_id, norm(vector) from _means_of('latest', true) where layer = 0 and site = 'hidden_in'
CREATE OR REPLACE MACRO _means_of(run_id, wanted) AS TABLE
SELECT s.run AS run_id, s.prompt_id, NULL::INTEGER AS position, s.layer, s.site, s.vector
FROM _rows_of(_files_if(wanted, 'states', run_id, '/*.parquet')) AS s
WHERE s.state = 'mean';

-- A vector for each prompt of a run, of one layer and site: what a probe reads.
--
-- Opens the files of that layer only, and reads that site's column. A selector that keeps several positions gives a
-- row for each; prompts of which it keeps none are left out. `mean` comes from the states, and the activations are not
-- opened. Works on conversations too, where `last` and `all` are those of the prompt.
-- @param run_id a run id, `latest`, or a list of these
-- @param layer 0-based decoder block
-- @param site a site of `activations`, such as hidden_out; of mean hidden_in, hidden_out, attn_out or mlp_down_out
-- @param selector last, all, message_ends, a field of the dataset's template, or mean; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset, or conversation
-- @column position 0-based place of the token in the prompt; NULL for mean
-- @column vector the activation
-- @example select prompt_id, norm(vector) from vectors_of('latest', 1, 'hidden_out')
-- @example
-- select l.* exclude (run_id), v.vector
-- from vectors_of('latest', 0, 'hidden_in', selector := 'mean') v join labels_of('latest') l using (run_id, prompt_id)
CREATE OR REPLACE MACRO vectors_of(run_id, layer, site, selector := 'last') AS TABLE
SELECT v.run_id, v.prompt_id, v.position, v.vector
FROM (SELECT s.* FROM _selected_of(run_id, site, selector) AS s WHERE s.layer = layer
      UNION ALL
      SELECT m.* EXCLUDE (site) FROM _means_of(run_id, 'mean' = selector) AS m
      WHERE m.layer = layer AND m.site = site) AS v
ORDER BY v.run_id, v.prompt_id, v.position;

-- Every site of some runs at the positions that a selector keeps; a query that names a site reads only that one.
-- @param run_id a run id, `latest`, or a list of these
-- @param selector last, all, message_ends, a field of the dataset's template, or mean
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset, or conversation
-- @column position 0-based place of the token in the prompt; NULL for mean
-- @column layer 0-based decoder block
-- @column site name of the site
-- @column vector the activation
-- @example select count(*) from _sites_of('latest', 'last') where site = 'hidden_out' and layer = 1
CREATE OR REPLACE MACRO _sites_of(run_id, selector) AS TABLE
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'hidden_in' AS site, s.vector
FROM _selected_of(run_id, 'hidden_in', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'hidden_out' AS site, s.vector
FROM _selected_of(run_id, 'hidden_out', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'q' AS site, s.vector
FROM _selected_of(run_id, 'q', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'k' AS site, s.vector
FROM _selected_of(run_id, 'k', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'v' AS site, s.vector
FROM _selected_of(run_id, 'v', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'attn_out' AS site, s.vector
FROM _selected_of(run_id, 'attn_out', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'mlp_gate' AS site, s.vector
FROM _selected_of(run_id, 'mlp_gate', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'mlp_up' AS site, s.vector
FROM _selected_of(run_id, 'mlp_up', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'mlp_down_in' AS site, s.vector
FROM _selected_of(run_id, 'mlp_down_in', selector) AS s
UNION ALL
SELECT s.run_id, s.prompt_id, s.position, s.layer, 'mlp_down_out' AS site, s.vector
FROM _selected_of(run_id, 'mlp_down_out', selector) AS s
UNION ALL
SELECT m.run_id, m.prompt_id, m.position, m.layer, m.site, m.vector
FROM _means_of(run_id, 'mean' = selector) AS m;

-- The prompts of a run whose vectors point most nearly along that of one of them.
--
-- Where a selector keeps several positions, the nearest pair of two prompts counts. The vectors of a run share a large
-- common part, so most cosines are high: their order says more than their size.
-- @param run_id a run id, `latest`, or a list of these
-- @param prompt 0-based row of the dataset, or conversation
-- @param layer 0-based decoder block
-- @param site a site of `activations`, such as hidden_out
-- @param selector last, all, message_ends, a field of the dataset's template, or mean; give it by name
-- @param k how many prompts; give it by name
-- @column run_id id of the run
-- @column prompt_id the other prompt
-- @column row_id id of its row in the dataset
-- @column position where in it the vector stands; NULL for mean
-- @column cosine cosine of the two vectors; NULL where one is all zeros
-- @column prompt_text text of the other prompt
-- @example select row_id, cosine, prompt_text from nearest_prompts('latest', 0, 1, 'hidden_out', k := 5)
CREATE OR REPLACE MACRO nearest_prompts(run_id, prompt, layer, site, selector := 'last', k := 10) AS TABLE
WITH vectors AS MATERIALIZED (
  SELECT v.run_id, v.prompt_id, v.position, v.vector FROM vectors_of(run_id, layer, site, selector := selector) AS v
), pairs AS (
  SELECT v.run_id, v.prompt_id, v.position, cosine(v.vector, o.vector) AS cosine
  FROM vectors AS v JOIN vectors AS o ON o.run_id = v.run_id AND o.prompt_id = prompt
  WHERE v.prompt_id <> prompt
), nearest AS (
  SELECT p.run_id, p.prompt_id, max(p.cosine) AS cosine, arg_max(p.position, (p.cosine, -p.position)) AS position
  FROM pairs AS p
  GROUP BY p.run_id, p.prompt_id
  QUALIFY row_number() OVER (PARTITION BY p.run_id ORDER BY max(p.cosine) DESC NULLS LAST, p.prompt_id) <= k
)
SELECT n.run_id, n.prompt_id, t.row_id, n.position, n.cosine, t.prompt_text
FROM nearest AS n LEFT JOIN prompts AS t ON t.run_id = n.run_id AND t.prompt_id = n.prompt_id
ORDER BY n.run_id, n.cosine DESC NULLS LAST, n.prompt_id;
