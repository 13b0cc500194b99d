-- The means over the tokens of some prompts of a run.
SELECT prompt_id, layer, site, vector
FROM _means_of($run, true)
WHERE list_contains($prompts, prompt_id);
