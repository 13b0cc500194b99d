-- Two pairs of vectors, to try `compare_pairs` on.
-- @column id id of the pair
-- @column a a vector
-- @column b a vector of the same width
-- @example select cosine(a, b) from _example_pairs
CREATE OR REPLACE VIEW _example_pairs AS
SELECT * FROM (VALUES (1, [3, 4], [4, 3]), (2, [1, 0], [0, 1])) AS pairs(id, a, b);
