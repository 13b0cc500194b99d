-- The layers in which a site was captured.
SELECT layer FROM sites WHERE run_id = $run AND site = $site AND width IS NOT NULL AND layer IS NOT NULL ORDER BY layer
