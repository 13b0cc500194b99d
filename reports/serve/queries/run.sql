-- One run: its facts, and what there is of it.
SELECT r.*, list_filter(list_concat(
         (SELECT coalesce(list(DISTINCT dataset), []) FROM files AS f WHERE f.run_id = r.run_id),
         [CASE WHEN EXISTS (FROM tokens AS t WHERE t.run_id = r.run_id) THEN 'tokens' END,
          CASE WHEN EXISTS (FROM sites AS s WHERE s.run_id = r.run_id AND s.site IN ('attn_out', 'mlp_down_out')
                            AND s.width IS NOT NULL) THEN 'residual' END,
          CASE WHEN EXISTS (FROM reference_states AS s WHERE s.run_id = r.run_id) THEN 'references' END,
          CASE WHEN EXISTS (FROM files AS f WHERE f.run_id = r.run_id
                            AND f.dataset IN ('activations', 'attention', 'outputs')) THEN 'tensors' END]),
         lambda name: name IS NOT NULL) AS has
FROM runs AS r
WHERE r.run_id = $run
