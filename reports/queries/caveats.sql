-- What can't be concluded from the runs, and why.
FROM caveats($runs)
