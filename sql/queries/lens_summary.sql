-- A line per layer: how far it is from the model's answer, and what it favours.
SELECT * EXCLUDE (run_id, site) FROM logit_lens_summary($run) WHERE site = $site;
