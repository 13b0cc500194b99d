-- The settings in which the runs differ.
FROM run_settings($runs)
