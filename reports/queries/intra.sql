-- How far each layer's last-token state moved between the end of the prompt and the end of the reply.
SELECT run_id, prompt_id, site, layer, cosine, mae, jaccard
FROM intra_run($run)
ORDER BY prompt_id, site, layer
