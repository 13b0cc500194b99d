-- How many conversations lean towards each reference before the reply; clear: it leads in two thirds of the layers.
SELECT l.label, CASE WHEN 3 * l.layers_led >= 2 * l.layers THEN 'clearly' ELSE 'narrowly' END AS how, count(*) AS conversations
FROM leaning_layers($runs, site := $site, over := 'conversations') AS l
GROUP BY ALL
ORDER BY label, how
