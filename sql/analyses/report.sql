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

-- Pairs of comparable runs, message by message: the states after the same message, like with like.
--
-- Both states are read at the end of the generation prompt. The reply is a message too, the last one.
-- @param runs a list of run ids
-- @column run_a id of the older run
-- @column run_b id of the newer run
-- @column prompt_id 0-based conversation, the same in both runs
-- @column message_index last message that the states have seen
-- @column role role of that message in the older run
-- @column is_generated true for the states after the generated reply
-- @column site hidden_in, hidden_out, attn_out or mlp_down_out
-- @column layer 0-based decoder block
-- @column cosine cosine of the two states; NULL where one is all zeros
-- @column mae mean absolute difference of the two states
-- @column jaccard overlap of the largest 1% of their dimensions
-- @example
-- select message_index, avg(cosine) from inter_run_messages(['one_run', 'another_run'])
-- where site = 'hidden_out' group by message_index
CREATE OR REPLACE MACRO inter_run_messages(runs) AS TABLE
SELECT c.a.run_id AS run_a, c.b.run_id AS run_b, c.a.prompt_id, c.a.state_index AS message_index, a.role,
       a.is_generated, c.a.site, c.a.layer, c.cosine, c.mae, c.jaccard
FROM _compare_states(runs, 'messages') AS c
JOIN snapshots AS a
  ON a.run_id = c.a.run_id AND a.prompt_id = c.a.prompt_id AND a.message_index = c.a.state_index
JOIN snapshots AS b
  ON b.run_id = c.b.run_id AND b.prompt_id = c.b.prompt_id AND b.message_index = c.b.state_index
WHERE a.is_generated = b.is_generated;
