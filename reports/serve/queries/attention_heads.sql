-- How widely each head looks, and how much it moves: means over the last query tokens of one pass.
WITH queries AS (
  SELECT a.layer, a.head, a.position, a.weights[1] AS to_first, unnest(a.weights) AS weight
  FROM attention_of($run) AS a
  WHERE a.prompt_id = $prompt AND a.step = $step
    AND a.position >= (SELECT s.seq_len - $queries FROM steps AS s
                       WHERE s.run_id = $run AND s.prompt_id = $prompt AND s.step = $step)
), each AS (
  SELECT q.layer, q.head, q.position, any_value(q.to_first) AS to_first,
         -sum(CASE WHEN q.weight > 0 THEN q.weight::DOUBLE * ln(q.weight::DOUBLE) ELSE q.weight END) AS entropy,
         max(q.weight) AS largest
  FROM queries AS q
  GROUP BY q.layer, q.head, q.position
)
SELECT layer, head, avg(entropy) AS entropy, avg(entropy / nullif(ln(position + 1), 0)) AS share,
       avg(to_first) AS to_first, avg(largest) AS largest, count(*) AS queries, min(position) AS from_position
FROM each GROUP BY layer, head ORDER BY layer, head
