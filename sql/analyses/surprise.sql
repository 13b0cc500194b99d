-- How unexpected each token of a conversation was, and how open what follows it.
--
-- Both come from the logits where they were captured (`capture.logits`), at every token that a pass read; else from
-- the passes, at the last token of each. Over a long prompt the logits take their time: they are as wide as the
-- vocabulary.
-- @param run_id a run id, `latest`, or a list of these
-- @param prompt 0-based conversation within the run; give it by name
-- @column run_id id of the run
-- @column prompt_id 0-based conversation within the run
-- @column position 0-based place of the token in the whole sequence
-- @column token text of the token
-- @column role role of the message that the token belongs to
-- @column surprise minus the log-probability of the token after all that stand before it, nats; NULL for the first
--   token, and where that is not known
-- @column entropy entropy of the model's distribution over what follows the token, nats; NULL where that is not known
-- @example select token, surprise from token_surprise('latest') order by surprise desc nulls last limit 5
CREATE OR REPLACE MACRO token_surprise(run_id, prompt := 0) AS TABLE
WITH logits AS (  -- the largest logit, and the sums over the vocabulary of e^(x − largest) and of x · e^(x − largest)
  SELECT l.run_id AS run, l.position, l.most, l.logits[n.token_id + 1]::DOUBLE AS chosen,
         list_sum([exp(_x::DOUBLE - l.most) FOR _x IN l.logits]) AS total,
         list_sum([exp(_x::DOUBLE - l.most) * _x FOR _x IN l.logits]) AS weighted
  FROM (SELECT o.run_id, o.position, o.logits, list_max(o.logits)::DOUBLE AS most
        FROM outputs_of(run_id) AS o WHERE o.prompt_id = prompt AND o.logits IS NOT NULL) AS l
  LEFT JOIN _tokens_of(run_id) AS n
    ON n.run_id = l.run_id AND n.prompt_id = prompt AND n.position = l.position + 1
), passes AS (
  SELECT s.run_id AS run, s.seq_len - 1 AS position, s.entropy,
         -CASE WHEN s.generated_token_id = s.argmax_token_id THEN s.argmax_logprob ELSE t.logprob END AS next_surprise
  FROM steps AS s
  JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON s.run_id = asked
  LEFT JOIN top_tokens AS t ON t.run_id = s.run_id AND t.prompt_id = s.prompt_id AND t.step = s.step
                           AND t.token_id = s.generated_token_id
  WHERE s.prompt_id = prompt
), after AS (
  SELECT l.run, l.position, l.most + ln(l.total) - l.weighted / l.total AS entropy,
         l.most + ln(l.total) - l.chosen AS next_surprise
  FROM logits AS l
  UNION ALL
  SELECT p.run, p.position, p.entropy, p.next_surprise
  FROM passes AS p ANTI JOIN logits AS l ON l.run = p.run AND l.position = p.position
)
SELECT t.run_id, t.prompt_id, t.position, t.token, t.role, b.next_surprise AS surprise, a.entropy
FROM _tokens_of(run_id) AS t
LEFT JOIN after AS a ON a.run = t.run_id AND a.position = t.position
LEFT JOIN after AS b ON b.run = t.run_id AND b.position = t.position - 1
WHERE t.prompt_id = prompt
ORDER BY t.run_id, t.position;
