-- Two runs against each other, layer by layer.
SELECT c.run_a, c.run_b, c.run_a || ' × ' || c.run_b AS pair, prompt_id, state, site, layer, cosine, mae, jaccard
FROM inter_run($run_a, $run_b) AS c
