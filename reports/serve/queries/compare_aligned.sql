-- How many tokens of two states are aligned, of how many each has.
SELECT (SELECT count(*) FROM tokens_aligned($refs, $alignment)) AS aligned,
       (SELECT count(*) FROM tokens_by_ref($refs) AS t WHERE t.place = 0) AS tokens_a,
       (SELECT count(*) FROM tokens_by_ref($refs) AS t WHERE t.place = 1) AS tokens_b
