-- How alike the runs are after each message: cosine, mean over layers, pairs and conversations, like with like.
SELECT message_index, any_value(role) AS role, bool_or(is_generated) AS is_generated, avg(cosine) AS cosine,
       count(DISTINCT pair) AS pairs
FROM pair_messages_rows
WHERE site = $site
GROUP BY message_index
HAVING avg(cosine) IS NOT NULL
ORDER BY message_index
