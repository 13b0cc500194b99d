-- What the tokens page offers: one row of the run's prompts, layers, sites, labels and heads.
SELECT (SELECT count(*) FROM prompts AS p WHERE p.run_id = $run) AS prompts,
       (SELECT count(*) FROM tokens AS t WHERE t.run_id = $run AND t.prompt_id = $prompt) AS tokens,
       (SELECT coalesce(list(DISTINCT s.layer ORDER BY s.layer), []) FROM sites AS s
        WHERE s.run_id = $run AND s.layer IS NOT NULL AND s.width IS NOT NULL) AS layers,
       (SELECT coalesce(list({'site': w.site, 'width': w.width} ORDER BY w.place), [])
        FROM (SELECT s.site, max(s.width) AS width, min(list_position(
                ['hidden_out', 'hidden_in', 'attn_out', 'mlp_down_out', 'mlp_down_in', 'mlp_gate', 'mlp_up', 'q', 'k', 'v'],
                s.site)) AS place
              FROM sites AS s WHERE s.run_id = $run AND s.layer IS NOT NULL AND s.width IS NOT NULL
              GROUP BY s.site) AS w) AS sites,
       (SELECT coalesce(list(r.label ORDER BY r.ref_index), []) FROM reference_states AS r
        WHERE r.run_id = $run) AS labels,
       (SELECT r.num_heads FROM runs AS r WHERE r.run_id = $run) AS heads,
       (SELECT coalesce(list(f.run_id ORDER BY r.created_at DESC), []) FROM (
          SELECT DISTINCT f.run_id FROM files AS f WHERE f.dataset = 'labels') AS f
        JOIN runs AS r ON r.run_id = f.run_id
        JOIN runs AS own ON own.run_id = $run AND own.model_id = r.model_id
                        AND own.weights_hash IS NOT DISTINCT FROM r.weights_hash) AS sources,
       (SELECT p.row_id FROM prompts AS p WHERE p.run_id = $run AND p.prompt_id = $prompt) AS row_id,
       (SELECT _has('models', coalesce(r.weights_hash, _model_key(r.model_id))) FROM runs AS r
        WHERE r.run_id = $run) AS has_unembedding
