-- The vectors of a site for some tokens in every layer; `i` is the token's place in the lists.
SELECT a.layer, t.i, a.vector
FROM tensor_of($run, $site) AS a
JOIN (
  SELECT
    unnest($prompts) AS prompt_id, unnest($steps) AS step, unnest($positions) AS position,
    unnest(range(len($prompts))) AS i
) AS t USING (prompt_id, step, position);
