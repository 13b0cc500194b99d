-- How far the reply moved the state, beside how far the messages before it did.
SELECT * FROM reply_summary($runs) WHERE site = $site ORDER BY list_position($runs, run_id), prompt_id
