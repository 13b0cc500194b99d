-- What there is to search: runs, prompts and tokens, the layers and sites of any run, runs of datasets.
SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM prompts) AS prompts, (SELECT count(*) FROM tokens) AS tokens,
       (SELECT coalesce(list(DISTINCT s.layer ORDER BY s.layer), []) FROM sites AS s
        WHERE s.layer IS NOT NULL AND s.width IS NOT NULL) AS layers,
       (SELECT coalesce(list(DISTINCT s.site ORDER BY s.site), []) FROM sites AS s
        WHERE s.layer IS NOT NULL AND s.width IS NOT NULL) AS sites,
       (SELECT coalesce(list(r.run_id ORDER BY r.created_at DESC), []) FROM runs AS r
        WHERE EXISTS (FROM files AS f WHERE f.run_id = r.run_id AND f.dataset = 'labels')) AS sources
