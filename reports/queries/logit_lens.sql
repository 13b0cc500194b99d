-- What each layer would say next, the last 64 tokens that the lens was asked about, and how far that is from the end.
SELECT l.run_id, l.prompt_id, l.site, l.position, l.position || '  ' || replace(coalesce(t.token, ''), chr(10), '⏎') AS read, l.layer,
       replace(l.token, chr(10), '⏎') AS token,
       exp(l.logprob) AS probability, l.kl, l.next_rank
FROM logit_lens_of($runs) AS l
LEFT JOIN tokens AS t ON t.run_id = l.run_id AND t.prompt_id = l.prompt_id AND t.position = l.position
WHERE l.rank = 0
QUALIFY dense_rank() OVER (PARTITION BY l.run_id, l.prompt_id, l.site ORDER BY l.position DESC) <= 64
ORDER BY l.run_id, l.prompt_id, l.site, l.position, l.layer
