-- What each layer finds most likely after each of 48 tokens, how sure it is, and how that compares with the last layer.
SELECT p.position, t.token AS read, l.layer, l.token, l.token_id, exp(l.logprob) AS probability, l.kl,
       n.token AS next_token, l.next_token_id, l.next_rank, exp(l.next_logprob) AS next_probability
FROM (SELECT DISTINCT position FROM logit_lens_of($run) WHERE prompt_id = $prompt AND site = $site AND rank = 0
      ORDER BY position LIMIT 48 OFFSET greatest($first, 0)) AS p
JOIN logit_lens_of($run) AS l ON l.position = p.position AND l.prompt_id = $prompt AND l.site = $site AND l.rank = 0
LEFT JOIN tokens AS t ON t.run_id = l.run_id AND t.prompt_id = $prompt AND t.position = p.position
LEFT JOIN tokens AS n ON n.run_id = l.run_id AND n.prompt_id = $prompt AND n.position = p.position + 1
ORDER BY p.position, l.layer
