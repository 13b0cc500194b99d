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

-- How the residual stream settles from layer to layer in any forward pass: at the pass's last token, and the mean over
-- the tokens that it read.
--
-- Reads the activations of hidden_in and hidden_out, of which `convergence` needs the states only. No rows where they
-- were dropped or not captured.
-- @param run_id a run id, `latest`, or a list of these
-- @param step 0-based forward pass; 0 is the prefill
-- @param prompt 0-based conversation within the run; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column layer 0-based decoder block
-- @column tokens tokens of the pass whose vectors were kept
-- @column cosine_adjacent cosine of the stream that enters the layer and the one that leaves it, at the last token
-- @column relative_step length of what the layer adds, relative to the stream that enters it, at the last token
-- @column cosine_last cosine of the stream that leaves this layer and the one that leaves the last captured layer, at
--   the last token
-- @column cosine_adjacent_mean as cosine_adjacent, mean over the tokens
-- @column relative_step_mean as relative_step, mean over the tokens
-- @column cosine_last_mean as cosine_last, mean over the tokens
-- @example select layer, cosine_adjacent, cosine_adjacent_mean from pass_convergence('latest', 0)
CREATE OR REPLACE MACRO pass_convergence(run_id, step, prompt := 0) AS TABLE
WITH streams AS MATERIALIZED (
  SELECT t.run_id AS run, t.position, t.layer, t.hidden_in AS before, t.hidden_out AS after
  FROM activations_of(run_id) AS t
  WHERE t.prompt_id = prompt AND t.step = step AND t.hidden_in IS NOT NULL AND t.hidden_out IS NOT NULL
), ends AS (
  SELECT s.run, s.position, s.after AS last_of
  FROM streams AS s
  WHERE s.layer = (SELECT max(o.layer) FROM streams AS o WHERE o.run = s.run)
), turns AS (
  SELECT s.run, s.layer, s.position, s.position = max(s.position) OVER (PARTITION BY s.run) AS is_last,
         cosine(s.before, s.after) AS turn, cosine(s.after, e.last_of) AS arrived,
         euclidean(s.before, s.after) / nullif(norm(s.before), 0) AS stride
  FROM streams AS s JOIN ends AS e ON e.run = s.run AND e.position = s.position
)
SELECT t.run AS run_id, prompt AS prompt_id, step AS step, t.layer, count(*) AS tokens,
       any_value(t.turn) FILTER (t.is_last) AS cosine_adjacent,
       any_value(t.stride) FILTER (t.is_last) AS relative_step,
       any_value(t.arrived) FILTER (t.is_last) AS cosine_last,
       avg(t.turn) AS cosine_adjacent_mean, avg(t.stride) AS relative_step_mean, avg(t.arrived) AS cosine_last_mean
FROM turns AS t
GROUP BY t.run, t.layer
ORDER BY t.run, t.layer;

-- Both notions of effective depth for any forward pass: from which layer on the residual stream is no longer turned
-- much, and from which on it points where it ends up. `settling_depth` and `arrival_depth` tell the same of states.
-- @param run_id a run id, `latest`, or a list of these
-- @param step 0-based forward pass; 0 is the prefill
-- @param prompt 0-based conversation within the run; give it by name
-- @param threshold cosine that counts as settled, or arrived; give it by name
-- @column run_id id of the run
-- @column place last token, or mean over the tokens of the pass
-- @column settling_depth first layer from which on every layer's own cosine reaches the threshold; NULL where none does
-- @column arrival_depth first layer from which on every cosine with the last layer reaches the threshold
-- @column layers number of captured layers
-- @example select place, settling_depth, arrival_depth, layers from pass_depth('latest', 0, threshold := 0.5)
CREATE OR REPLACE MACRO pass_depth(run_id, step, prompt := 0, threshold := 0.9) AS TABLE
WITH both_of AS (
  SELECT c.run_id AS run, 'last token' AS place, c.layer, c.cosine_adjacent AS turn, c.cosine_last AS arrived
  FROM pass_convergence(run_id, step, prompt := prompt) AS c
  UNION ALL
  SELECT c.run_id, 'mean over the tokens', c.layer, c.cosine_adjacent_mean, c.cosine_last_mean
  FROM pass_convergence(run_id, step, prompt := prompt) AS c
), worst_of AS (
  SELECT b.run, b.place, b.layer, min(b.turn) OVER later AS turn, min(b.arrived) OVER later AS arrived
  FROM both_of AS b
  WINDOW later AS (PARTITION BY b.run, b.place ORDER BY b.layer DESC)
)
SELECT w.run AS run_id, w.place, min(w.layer) FILTER (w.turn >= threshold) AS settling_depth,
       min(w.layer) FILTER (w.arrived >= threshold) AS arrival_depth, count(*) AS layers
FROM worst_of AS w
GROUP BY w.run, w.place
ORDER BY w.run, w.place;
