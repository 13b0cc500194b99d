-- The vectors of which the two directions of most variance are drawn; these are found with numpy, over a sample.
SELECT v.layer, v.prompt_id, v.position, v.vector FROM _sites_of($run, $selector) AS v WHERE v.site = $site
