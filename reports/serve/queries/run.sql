-- One run: its facts, and what there is of it. The residual stream is that of activations, or of a conversation's first
-- and last state: only what was read in a pass has those, and datasets have means.
WITH kept AS (
  SELECT coalesce(list(DISTINCT dataset), []) AS datasets FROM files WHERE run_id = $run
)
SELECT r.*, list_filter(list_concat(k.datasets,
         [CASE WHEN EXISTS (FROM tokens AS t WHERE t.run_id = r.run_id) THEN 'tokens' END,
          CASE WHEN EXISTS (FROM sites AS s WHERE s.run_id = r.run_id AND s.site IN ('attn_out', 'mlp_down_out')
                            AND s.width IS NOT NULL)
                AND (list_contains(k.datasets, 'activations')
                     OR list_contains(k.datasets, 'states') AND NOT list_contains(k.datasets, 'labels')
                        AND EXISTS (FROM steps AS s WHERE s.run_id = r.run_id)) THEN 'residual' END,
          CASE WHEN EXISTS (FROM reference_states AS s WHERE s.run_id = r.run_id) THEN 'references' END,
          CASE WHEN list_has_any(k.datasets, ['activations', 'attention', 'outputs']) THEN 'tensors' END]),
         lambda name: name IS NOT NULL) AS has
FROM runs AS r, kept AS k
WHERE r.run_id = $run
