-- Where the logit lens was asked: how many tokens of each conversation, by site.
SELECT prompt_id, site, count(DISTINCT position) AS places
FROM logit_lens_of($run) WHERE rank = 0 GROUP BY prompt_id, site ORDER BY prompt_id, site = 'contributions'
