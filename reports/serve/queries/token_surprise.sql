-- How unexpected each token was after all before it, nats.
SELECT position, token, role, surprise AS value FROM token_surprise($run, prompt := $prompt) ORDER BY position
