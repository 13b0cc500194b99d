-- How open the model held what follows each token, nats.
SELECT position, token, role, entropy AS value FROM token_surprise($run, prompt := $prompt) ORDER BY position
