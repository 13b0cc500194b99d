-- Every pair of comparable runs out of a list: `inter_run_all` for a part of the lake.
--
-- Reads the states of these runs only; `run_pairs` names the pairs that are left out, with the reason.
-- @param runs a list of run ids
-- @column run_a id of the older run
-- @column run_b id of the newer run
-- @column prompt_id 0-based conversation, the same in both runs
-- @column state initial or final
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example select run_a, run_b, avg(cosine) from inter_run_among(['one_run', 'another_run']) group by all
CREATE OR REPLACE MACRO inter_run_among(runs) AS TABLE
SELECT c.a.run_id AS run_a, c.b.run_id AS run_b, c.a.prompt_id, c.a.state, c.a.site, c.a.layer,
       c.cosine, c.mae, c.jaccard
FROM _compare_states(runs, 'inter') AS c;
