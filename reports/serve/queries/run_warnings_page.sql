-- What the reader of a run should know, each message once, with how often it was said.
SELECT code, message, count(*) AS count FROM run_warnings($run) GROUP BY code, message ORDER BY code = 'dtype', code, message LIMIT 50
