-- What one layer would say after each token of a conversation.
SELECT position, token, exp(logprob) AS probability
FROM logit_lens_of($run)
WHERE prompt_id = $prompt AND layer = $layer AND rank = 0 AND site = 'hidden_out'
ORDER BY position
