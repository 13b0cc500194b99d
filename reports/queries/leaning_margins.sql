-- How sure the margin of each leaning is, where labels have several examples.
SELECT l.run_id, l.prompt_id, l.message_index, l.margin_low, l.margin_high, l.agrees, l.n
FROM leaning($runs, site := $site) AS l
WHERE l.margin_low IS NOT NULL
