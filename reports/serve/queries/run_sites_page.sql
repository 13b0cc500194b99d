-- The sites of a run, layers that are alike in one row, and why some were not captured.
SELECT site, layers, width, reason, out_of_range, nonfinite FROM run_sites($run)
