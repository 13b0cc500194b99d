-- One line per conversation, state and site of `inter_run`: the spread over the layers, and where the extremes are.
-- @param run_a a run id or `latest`
-- @param run_b a run id or `latest`
-- @column run_a id of the first run
-- @column run_b id of the second run
-- @column prompt_id 0-based conversation, the same in both runs
-- @column state initial or final
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
-- @example select state, site, cosine_mean from inter_run_summary('latest', 'another_run')
CREATE OR REPLACE MACRO inter_run_summary(run_a, run_b) AS TABLE
SELECT c.run_a, c.run_b, prompt_id, state, site, unnest(_spread(cosine, mae, jaccard, layer))
FROM inter_run(run_a, run_b) AS c
GROUP BY c.run_a, c.run_b, prompt_id, state, site
ORDER BY c.run_a, c.run_b, prompt_id, state DESC, site;

-- One line per pair of runs, conversation, state and site of `inter_run_all`: the spread over the layers, and where
-- the extremes are.
-- @column run_a id of the older run
-- @column run_b id of the newer run
-- @column prompt_id 0-based conversation, the same in both runs
-- @column state initial or final
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
-- @example select run_a, run_b, cosine_mean from inter_run_all_summary() where state = 'final' and site = 'hidden_out'
CREATE OR REPLACE MACRO inter_run_all_summary() AS TABLE
SELECT c.run_a, c.run_b, prompt_id, state, site, unnest(_spread(cosine, mae, jaccard, layer))
FROM inter_run_all() AS c
GROUP BY c.run_a, c.run_b, prompt_id, state, site
ORDER BY c.run_a, c.run_b, prompt_id, state DESC, site;
