-- The vectors of all states in all layers: in the plane of their most variance alab draws each state's way.
SELECT place, layer,
       CASE WHEN $length = 'one' THEN [(x / nullif(norm(vector), 0))::FLOAT FOR x IN vector] ELSE vector::FLOAT[] END AS vector
FROM states_by_ref($refs) WHERE site = $site ORDER BY place, layer
