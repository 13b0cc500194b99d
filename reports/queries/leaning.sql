-- Towards which reference each message leans, and how sure that is.
FROM leaning_layers($runs, site := $site)
