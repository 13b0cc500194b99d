-- The vectors whose two directions of most variance are drawn (found with numpy), and the label of each.
SELECT v.prompt_id, v.position, v.vector, l.label
FROM vectors_of($run, $layer, $site, selector := $selector) AS v
LEFT JOIN label_values($run, $label) AS l ON l.run_id = v.run_id AND l.prompt_id = v.prompt_id
QUALIFY row_number() OVER (PARTITION BY v.prompt_id ORDER BY v.position DESC) = 1
ORDER BY v.prompt_id
