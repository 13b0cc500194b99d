-- How widely each head spreads its attention: the entropy of the weights of every query token.
--
-- 0 when a head looks at one token only, ln(n) when it looks at n tokens alike. No rows where attention was not
-- captured (`capture.attention_weights` of the scenario).
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column layer 0-based decoder block
-- @column head 0-based attention head
-- @column position position of the query token
-- @column entropy entropy of its weights, nats
-- @example select layer, head, avg(entropy) from attention_entropy('latest') group by all order by all
CREATE OR REPLACE MACRO attention_entropy(run_id) AS TABLE
SELECT t.run_id, prompt_id, step, layer, head, position,
       -sum(CASE WHEN w > 0 THEN w::DOUBLE * ln(w::DOUBLE) ELSE w END) AS entropy
FROM (
  SELECT a.run_id, a.prompt_id, a.step, a.layer, a.head, a.position, unnest(a.weights) AS w
  FROM attention_of(run_id) AS a
) AS t
GROUP BY t.run_id, prompt_id, step, layer, head, position
ORDER BY t.run_id, prompt_id, step, layer, head, position;
