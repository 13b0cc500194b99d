-- A line per layer of what the lens saw in a run: how far it is from the answer, what it favours.
SELECT * EXCLUDE (run_id, site)
FROM logit_lens_summary($run)
WHERE site = $site;
