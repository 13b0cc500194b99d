-- Similarity of every token of a conversation with one of its tokens, at one layer and site.
--
-- No rows where the site was not captured (`capture.hidden_states`, `qkv`, `mlp` and `layers` of the scenario).
-- @param run_id a run id, `latest`, or a list of these
-- @param layer 0-based decoder block
-- @param site a site of `activations`, such as hidden_out
-- @param position 0-based place of the token to compare with
-- @param prompt 0-based conversation within the run; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column position 0-based place of the token
-- @column token text of the token
-- @column role role of the message that the token belongs to
-- @column cosine cosine of the two tokens' vectors; NULL where one is all zeros
-- @example select token, cosine from token_similarity('latest', 1, 'hidden_out', 3) order by cosine desc
CREATE OR REPLACE MACRO token_similarity(run_id, layer, site, "position", prompt := 0) AS TABLE
SELECT t.run_id, t.prompt_id, t.position, n.token, n.role, cosine(t.vector, o.vector) AS cosine
FROM tensor_of(run_id, site) AS t
JOIN tensor_of(run_id, site) AS o ON o.run_id = t.run_id AND o.prompt_id = t.prompt_id
LEFT JOIN _tokens_of(run_id) AS n
  ON n.run_id = t.run_id AND n.prompt_id = t.prompt_id AND n.position = t.position
WHERE t.layer = layer AND o.layer = layer AND o.position = position AND t.prompt_id = prompt
ORDER BY t.run_id, t.position;

-- The tokens of all runs whose vector points most nearly along a given one.
--
-- Reads one column of one layer of the whole lake, or of some runs; vectors of another width are left out. Of answers
-- for several sets of runs the first k by `cosine desc nulls last, run_id, prompt_id, position` are those of all.
-- @param vector a vector, or a scalar subquery in brackets that gives one
-- @param layer 0-based decoder block
-- @param site a site of `activations`, such as hidden_out
-- @param k how many tokens
-- @param runs a list of run ids, the only ones to look in; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column position 0-based place of the token in the whole sequence
-- @column token text of the token
-- @column role role of the message that the token belongs to
-- @column cosine cosine of the token's vector and the given one
-- @example select token, cosine from nearest_tokens((select vector from states limit 1), 0, 'hidden_out', 5)
CREATE OR REPLACE MACRO nearest_tokens(vector, layer, site, k, runs := NULL) AS TABLE
WITH asked AS MATERIALIZED (
  SELECT vector AS v
), best AS (
  SELECT t.run_id, t.prompt_id, t.step, t.position, cosine(t.vector, t.v) AS cosine
  FROM (
    SELECT a.run_id, a.prompt_id, a.step, a.position, asked.v,
           _site_column(site, a.hidden_in, a.hidden_out, a.q, a.k, a.v, a.attn_out, a.mlp_gate, a.mlp_up,
                        a.mlp_down_in, a.mlp_down_out) AS vector
    FROM activations AS a CROSS JOIN asked
    WHERE a.layer = layer AND (runs IS NULL OR list_contains(runs, a.run_id))
  ) AS t
  WHERE len(t.vector) = len(t.v)
  ORDER BY cosine DESC NULLS LAST, t.run_id, t.prompt_id, t.position
  LIMIT k
)
SELECT b.run_id, b.prompt_id, b.step, b.position, n.token, n.role, b.cosine
FROM best AS b
LEFT JOIN tokens AS n ON n.run_id = b.run_id AND n.prompt_id = b.prompt_id AND n.position = b.position
ORDER BY b.cosine DESC NULLS LAST, b.run_id, b.prompt_id, b.position;

-- Direction from one reference to another, per site and layer: the difference of their mean states.
-- @param run_id a run id, `latest`, or a list of these
-- @param positive_label label of the reference that the direction points to
-- @param negative_label label of the reference that it points away from
-- @column run_id id of the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column direction positive minus negative mean state
-- @column vector the same, by the name that it has in `label_direction`
-- @column norm length of the direction
-- @column n_positive examples of the first label; `direction_interval` says how sure the direction is
-- @column n_negative examples of the second label
-- @example select site, layer, norm from direction('latest', 'joy', 'fear')
CREATE OR REPLACE MACRO direction(run_id, positive_label, negative_label) AS TABLE
SELECT d.run_id, d.site, d.layer, list(difference ORDER BY dim) AS direction,
       list(difference ORDER BY dim) AS vector, sqrt(sum(difference ** 2)) AS norm,
       coalesce((SELECT max(r.n) FROM _references_of(run_id) AS r
                 WHERE r.run_id = d.run_id AND r.label = positive_label), 1) AS n_positive,
       coalesce((SELECT max(r.n) FROM _references_of(run_id) AS r
                 WHERE r.run_id = d.run_id AND r.label = negative_label), 1) AS n_negative
FROM (
  SELECT p.run_id, site, layer, dim,
         avg(x) FILTER (label = positive_label) - avg(x) FILTER (label = negative_label) AS difference
  FROM (
    SELECT s.run_id, s.site, s.layer, s.label, unnest(s.vector) AS x, unnest(range(len(s.vector))) AS dim
    FROM states_of(run_id) AS s
    WHERE s.state = 'reference' AND s.label IN (positive_label, negative_label)
  ) AS p
  GROUP BY p.run_id, site, layer, dim
) AS d
WHERE difference IS NOT NULL
GROUP BY d.run_id, d.site, d.layer
ORDER BY d.run_id, d.site, d.layer;
