-- Initial against final state: how far the last token's state moved between the prompt's end and the reply's end.
--
-- Reads the run's states only. No rows where nothing was generated, and none for a site that was not captured
-- (`capture.hidden_states` of the scenario).
-- @param run_id a run id or `latest`
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the initial and the final state; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select site, layer, cosine from intra_run('latest') order by cosine limit 3
CREATE OR REPLACE MACRO intra_run(run_id) AS TABLE
WITH pairs AS MATERIALIZED (
  SELECT row_number() OVER () AS pair, a.prompt_id, a.site, a.layer, a.vector AS a, b.vector AS b,
         _top_count(len(a.vector), 0.01) AS k
  FROM states_of(run_id) AS a
  JOIN states_of(run_id) AS b ON a.prompt_id = b.prompt_id AND a.site = b.site AND a.layer = b.layer
  WHERE a.state = 'initial' AND b.state = 'final'
), scores AS (
  SELECT pair, avg(abs(x::DOUBLE - y)) AS mae,
         max(_magnitude(x, dim), k) AS top_a, max(_magnitude(y, dim), k) AS top_b
  FROM (SELECT pair, k, unnest(a) AS x, unnest(b) AS y, unnest(range(len(a))) AS dim FROM pairs)
  GROUP BY pair
)
SELECT resolve_run(run_id) AS run_id, prompt_id, site, layer,
       cosine(a, b) AS cosine, mae, _overlap(top_a, top_b) AS jaccard
FROM pairs JOIN scores USING (pair)
ORDER BY prompt_id, site, layer;

-- One line per conversation and site of `intra_run`: the spread over the layers, and where the extremes are.
-- @param run_id a run id or `latest`
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layers number of layers compared
-- @column cosine_mean mean cosine over the layers
-- @column cosine_std population standard deviation of the cosine
-- @column cosine_median median cosine
-- @column cosine_min least cosine
-- @column cosine_min_layer layer of the least cosine
-- @column mae_mean mean of the mean absolute difference
-- @column mae_std its population standard deviation
-- @column mae_median its median
-- @column mae_max its maximum
-- @column mae_max_layer layer of the maximum
-- @column jaccard_mean mean overlap of the largest 1% of the dimensions
-- @column jaccard_std population standard deviation of the overlap
-- @column jaccard_median median overlap
-- @column jaccard_min least overlap
-- @column jaccard_min_layer layer of the least overlap
-- @example select site, cosine_mean, cosine_min, cosine_min_layer from intra_run_summary('latest')
CREATE OR REPLACE MACRO intra_run_summary(run_id) AS TABLE
SELECT resolve_run(run_id) AS run_id, prompt_id, site, unnest(_spread(cosine, mae, jaccard, layer))
FROM intra_run(run_id)
GROUP BY prompt_id, site
ORDER BY prompt_id, site;
