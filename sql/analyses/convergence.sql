-- How the residual stream settles from layer to layer, at the last token of the prompt and of the reply, or at any
-- other state.
--
-- Reads the run's states only. No rows without `capture.states`. `sublayer_convergence` tells the same of
-- attention and MLP each, `arrival_depth` and `settling_depth` sum it up in one layer.
-- @param run_id a run id, `latest`, or a list of these
-- @param kinds a list of initial, final, snapshot, reference and example; NULL for the first two; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references and examples
-- @column state kind of the state
-- @column layer 0-based decoder block
-- @column cosine_adjacent cosine of the stream that enters the layer and the stream that leaves it
-- @column relative_step length of what the layer adds, relative to the stream that enters it
-- @column cosine_last cosine of the stream that leaves this layer and the one that leaves the last captured layer
-- @column state_index as in the view `states`: of a snapshot the message that it has seen
-- @example select layer, cosine_adjacent, relative_step from convergence('latest') where state = 'final'
-- @example
-- select state_index as message_index, layer, cosine_last from convergence('latest', kinds := ['snapshot'])
CREATE OR REPLACE MACRO convergence(run_id, kinds := NULL) AS TABLE
SELECT i.run_id, i.prompt_id, i.state, i.layer,
       cosine(i.vector, o.vector) AS cosine_adjacent,
       euclidean(i.vector, o.vector) / nullif(norm(i.vector), 0) AS relative_step,
       cosine(o.vector, last_value(o.vector) OVER (
         PARTITION BY i.run_id, i.prompt_id, i.state, i.state_index ORDER BY i.layer
         ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)) AS cosine_last,
       i.state_index
FROM states_of(run_id) AS i
JOIN states_of(run_id) AS o
  ON o.run_id = i.run_id AND o.prompt_id IS NOT DISTINCT FROM i.prompt_id AND o.state = i.state
 AND o.state_index = i.state_index AND o.layer = i.layer
WHERE i.site = 'hidden_in' AND o.site = 'hidden_out' AND list_contains(coalesce(kinds, ['initial', 'final']), i.state)
ORDER BY i.run_id, i.prompt_id, i.state DESC, i.state_index, i.layer;

-- How attention and MLP each turn the residual stream, layer by layer: `convergence` in two steps a layer.
--
-- The stream between the two is what enters the layer with what attention adds. Models whose sub-layers read the same
-- stream side by side have no such place; there the MLP's row tells what it adds on top. No rows for a layer of which
-- one of the four sites was not captured.
-- @param run_id a run id, `latest`, or a list of these
-- @param kinds a list of initial, final, snapshot, reference and example; NULL for the first two; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references and examples
-- @column state kind of the state
-- @column state_index as in the view `states`: of a snapshot the message that it has seen
-- @column layer 0-based decoder block
-- @column site attn_out or mlp_down_out: the sub-layer
-- @column cosine_adjacent cosine of the stream before and after the sub-layer
-- @column relative_step length of what the sub-layer adds, relative to the stream before it
-- @column cosine_last cosine of the stream after the sub-layer and the one that leaves the last captured layer
-- @example select layer, site, relative_step, cosine_last from sublayer_convergence('latest') where state = 'final'
CREATE OR REPLACE MACRO sublayer_convergence(run_id, kinds := NULL) AS TABLE
WITH layers_of AS (
  SELECT s.run_id AS run, s.prompt_id, s.state, s.state_index, s.layer,
         any_value(s.vector) FILTER (s.site = 'hidden_in') AS before,
         any_value(s.vector) FILTER (s.site = 'attn_out') AS attn,
         any_value(s.vector) FILTER (s.site = 'mlp_down_out') AS mlp,
         any_value(s.vector) FILTER (s.site = 'hidden_out') AS after
  FROM states_of(run_id) AS s
  WHERE list_contains(coalesce(kinds, ['initial', 'final']), s.state)
  GROUP BY s.run_id, s.prompt_id, s.state, s.state_index, s.layer
), streams AS (
  SELECT *, vector_add(l.before, l.attn) AS middle,
         last_value(l.after) OVER (PARTITION BY l.run, l.prompt_id, l.state, l.state_index ORDER BY l.layer
                                   ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS last_of
  FROM layers_of AS l
  WHERE l.before IS NOT NULL AND l.attn IS NOT NULL AND l.mlp IS NOT NULL AND l.after IS NOT NULL
)
SELECT t.run AS run_id, t.prompt_id, t.state, t.state_index, t.layer, t.site,
       t.cosine_adjacent, t.relative_step, t.cosine_last
FROM (
  SELECT s.run, s.prompt_id, s.state, s.state_index, s.layer, 'attn_out' AS site,
         cosine(s.before, s.middle) AS cosine_adjacent, norm(s.attn) / nullif(norm(s.before), 0) AS relative_step,
         cosine(s.middle, s.last_of) AS cosine_last
  FROM streams AS s
  UNION ALL
  SELECT s.run, s.prompt_id, s.state, s.state_index, s.layer, 'mlp_down_out',
         cosine(s.middle, s.after), norm(s.mlp) / nullif(norm(s.middle), 0), cosine(s.after, s.last_of)
  FROM streams AS s
) AS t
ORDER BY t.run, t.prompt_id, t.state DESC, t.state_index, t.layer, t.site;

-- The layer from which on the residual stream keeps pointing where it ends up: where it arrives.
--
-- One of two notions that go by the name of effective depth. The other is `settling_depth`, from which layer on the
-- stream is no longer turned much by any one layer: small turns of many layers add up, so a stream may settle long
-- before it arrives; and one that arrives may be turned away and back.
-- @param run_id a run id, `latest`, or a list of these
-- @param threshold cosine with the last layer that counts as arrived; give it by name
-- @param kinds a list of initial, final, snapshot, reference and example; NULL for the first two; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references and examples
-- @column state kind of the state
-- @column state_index as in the view `states`: of a snapshot the message that it has seen
-- @column arrival_depth first layer from which on every cosine with the last layer reaches the threshold
-- @column layers number of captured layers
-- @example select state, arrival_depth, layers from arrival_depth('latest', threshold := 0.5)
CREATE OR REPLACE MACRO arrival_depth(run_id, threshold := 0.9, kinds := NULL) AS TABLE
SELECT t.run_id, prompt_id, state, state_index,
       min(layer) FILTER (worst >= threshold) AS arrival_depth, count(*) AS layers
FROM (
  SELECT c.run_id, c.prompt_id, c.state, c.state_index, c.layer,
         min(c.cosine_last) OVER (PARTITION BY c.run_id, c.prompt_id, c.state, c.state_index ORDER BY c.layer DESC)
           AS worst
  FROM convergence(run_id, kinds := kinds) AS c
) AS t
GROUP BY t.run_id, prompt_id, state, state_index
ORDER BY t.run_id, prompt_id, state DESC, state_index;

-- The layer from which on no layer turns the residual stream much: where it settles.
--
-- One of two notions that go by the name of effective depth; `arrival_depth` is the other, and tells them apart.
-- @param run_id a run id, `latest`, or a list of these
-- @param threshold cosine of the stream before and after a layer that counts as settled; give it by name
-- @param kinds a list of initial, final, snapshot, reference and example; NULL for the first two; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run; NULL for references and examples
-- @column state kind of the state
-- @column state_index as in the view `states`: of a snapshot the message that it has seen
-- @column settling_depth first layer from which on every layer's own cosine reaches the threshold; NULL where the last
--   layer's does not
-- @column layers number of captured layers
-- @example select state, settling_depth, layers from settling_depth('latest', threshold := 0.5)
CREATE OR REPLACE MACRO settling_depth(run_id, threshold := 0.9, kinds := NULL) AS TABLE
SELECT t.run_id, prompt_id, state, state_index,
       min(layer) FILTER (worst >= threshold) AS settling_depth, count(*) AS layers
FROM (
  SELECT c.run_id, c.prompt_id, c.state, c.state_index, c.layer,
         min(c.cosine_adjacent) OVER (PARTITION BY c.run_id, c.prompt_id, c.state, c.state_index
                                      ORDER BY c.layer DESC) AS worst
  FROM convergence(run_id, kinds := kinds) AS c
) AS t
GROUP BY t.run_id, prompt_id, state, state_index
ORDER BY t.run_id, prompt_id, state DESC, state_index;

-- The same as `arrival_depth`, by the name that it had before there were two notions of it.
-- @param run_id a run id, `latest`, or a list of these
-- @param threshold cosine with the last layer that counts as arrived; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column state initial or final
-- @column effective_depth first layer from which on every cosine with the last layer reaches the threshold
-- @column layers number of captured layers
-- @example select state, effective_depth, layers from effective_depth('latest', threshold := 0.5)
CREATE OR REPLACE MACRO effective_depth(run_id, threshold := 0.9) AS TABLE
SELECT a.run_id, a.prompt_id, a.state, a.arrival_depth AS effective_depth, a.layers
FROM arrival_depth(run_id, threshold := threshold) AS a;
