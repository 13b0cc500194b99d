-- The states before the reply, of all conversations of the report: in this connection the comparison with the
-- references means these rows, whose queries would otherwise compare every state of every run once more.
CREATE TEMP MACRO snapshot_cosine(run_id, centered := false) AS TABLE FROM before_reply_rows;
