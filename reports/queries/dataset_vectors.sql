-- The vectors of the sample in one layer; of several positions of a prompt the last.
SELECT v.prompt_id, v.vector
FROM vectors_of($run, $layer, $site, selector := $selector) AS v
SEMI JOIN dataset_sample AS s ON s.prompt_id = v.prompt_id
QUALIFY row_number() OVER (PARTITION BY v.prompt_id ORDER BY v.position DESC) = 1
ORDER BY v.prompt_id
