-- The sites and layers of the states that a run keeps.
SELECT site, list(DISTINCT layer ORDER BY layer) AS layers
FROM states_of($run) WHERE state = 'snapshot' GROUP BY site
ORDER BY list_position(['hidden_out', 'hidden_in', 'attn_out', 'mlp_down_out'], site), site
