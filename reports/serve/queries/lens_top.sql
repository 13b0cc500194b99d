-- The tokens that each layer finds most likely after each of 48 tokens.
SELECT l.position, l.layer, l.rank, l.token_id, l.token, exp(l.logprob) AS probability
FROM (SELECT DISTINCT position FROM logit_lens_of($run) WHERE prompt_id = $prompt AND site = $site AND rank = 0
      ORDER BY position LIMIT 48 OFFSET greatest($first, 0)) AS p
JOIN logit_lens_of($run) AS l ON l.position = p.position
WHERE l.prompt_id = $prompt AND l.site = $site AND l.rank < 10
ORDER BY l.position, l.layer, l.rank
