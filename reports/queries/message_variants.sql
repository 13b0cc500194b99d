-- What the runs were asked, each wording once, with the runs that have it.
FROM message_variants($runs)
