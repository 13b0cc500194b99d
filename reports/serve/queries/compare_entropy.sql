-- How widely attention spreads at each state's own token: the entropy of each head's weights, its mean, least and largest over the heads.
WITH ends AS MATERIALIZED (
  SELECT t.place, t.run_id, t.prompt_id, max(t.position) AS position
  FROM tokens_by_ref($refs) AS t JOIN _refs_of($refs) AS a ON a.place = t.place
  WHERE a.kind <> 'snapshot' AND coalesce(a.selector, '') <> 'mean'
  GROUP BY t.place, t.run_id, t.prompt_id
), heads AS (
  SELECT e.place, w.layer, w.head,
         -list_sum([p::DOUBLE * ln(p::DOUBLE) FOR p IN w.weights IF p > 0]) AS entropy
  FROM ends AS e
  JOIN attention_of([_ref_run(ref) FOR ref IN $refs]) AS w
    ON w.run_id = e.run_id AND w.prompt_id = e.prompt_id AND w.position = e.position
)
SELECT place, layer, avg(entropy) AS attention_entropy, min(entropy) AS least, max(entropy) AS largest, count(*) AS heads
FROM heads GROUP BY place, layer ORDER BY place, layer
