-- Towards which reference the state before the reply leans in each conversation, beside the other conversations.
SELECT l.run_id, l.prompt_id, l.label, 100 * l.shift AS hundredths, l.second, 100 * l.margin AS margin, l.layers_led,
       l.layers, l.states, l.n, 3 * l.layers_led >= 2 * l.layers AS clear
FROM leaning_layers($runs, site := $site, over := 'conversations') AS l
