-- The sites of a run that were captured, with their widths and layers, those of the stream first.
SELECT site, max(width) AS width, list(DISTINCT layer ORDER BY layer) AS layers
FROM sites WHERE run_id = $run AND width IS NOT NULL AND layer IS NOT NULL
GROUP BY site
ORDER BY coalesce(list_position(['hidden_out', 'hidden_in', 'attn_out', 'mlp_down_out', 'mlp_down_in', 'mlp_gate',
                                 'mlp_up'], site), 99), site
