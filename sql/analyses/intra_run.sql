-- Initial against final state: how far the last token's state moved between the prompt's end and the reply's end.
--
-- Reads the run's states only. No rows where nothing was generated, and none for a site that was not captured
-- (`capture.states` of the scenario).
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the initial and the final state; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select site, layer, cosine from intra_run('latest') order by cosine limit 3
CREATE OR REPLACE MACRO intra_run(run_id) AS TABLE
SELECT a.run_id, a.prompt_id, a.site, a.layer, cosine, mae, jaccard
FROM _compare_states(run_id, 'intra')
ORDER BY a.run_id, a.prompt_id, a.site, a.layer;

-- One line per conversation and site of `intra_run`: the spread over the layers, and where the extremes are.
-- @param run_id a run id, `latest`, or a list of these
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
SELECT t.run_id, prompt_id, site, unnest(_spread(cosine, mae, jaccard, layer))
FROM intra_run(run_id) AS t
GROUP BY t.run_id, prompt_id, site
ORDER BY t.run_id, prompt_id, site;
