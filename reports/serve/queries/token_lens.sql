-- What each layer would say after a token, and how far that is from what the last layer says.
SELECT layer, rank, token, exp(logprob) AS probability, kl, next_rank
FROM logit_lens_of($run)
WHERE prompt_id = $prompt AND position = $position AND site = 'hidden_out' AND rank < 3
ORDER BY layer, rank
