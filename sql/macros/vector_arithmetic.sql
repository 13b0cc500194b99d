-- Sum of two vectors, dimension by dimension.
-- @param a a vector
-- @param b a vector of the same width
-- @returns DOUBLE[]; NULL where either is NULL
-- @example select vector_add([1, 2], [3, 4]) = [4, 6]
CREATE OR REPLACE MACRO vector_add(a, b) AS
  CASE WHEN a IS NOT NULL AND b IS NOT NULL
       THEN (SELECT list(_x::DOUBLE + _y ORDER BY _dim)
             FROM (SELECT unnest(a) AS _x, unnest(_as_wide(a, b)) AS _y, unnest(range(len(a))) AS _dim)) END;

-- Difference of two vectors, dimension by dimension.
-- @param a a vector
-- @param b a vector of the same width
-- @returns DOUBLE[]; NULL where either is NULL
-- @example select vector_subtract([3, 4], [1, 1]) = [2, 3]
CREATE OR REPLACE MACRO vector_subtract(a, b) AS
  CASE WHEN a IS NOT NULL AND b IS NOT NULL
       THEN (SELECT list(_x::DOUBLE - _y ORDER BY _dim)
             FROM (SELECT unnest(a) AS _x, unnest(_as_wide(a, b)) AS _y, unnest(range(len(a))) AS _dim)) END;

-- A vector times a number.
-- @param a a vector
-- @param factor a number
-- @returns DOUBLE[]; NULL where either is NULL
-- @example select vector_scale([1, 2], 3) = [3, 6]
CREATE OR REPLACE MACRO vector_scale(a, factor) AS
  CASE WHEN factor IS NOT NULL
       THEN (SELECT list(_x * factor::DOUBLE ORDER BY _dim)
             FROM (SELECT unnest(a) AS _x, unnest(range(len(a))) AS _dim)) END;

-- A vector brought to length 1.
-- @param a a vector
-- @returns DOUBLE[]; NULL for NULL and for a vector of zeros
-- @example select unit([3, 4]) = [0.6, 0.8]
CREATE OR REPLACE MACRO unit(a) AS
  CASE WHEN norm(a) > 0
       THEN (SELECT list(_x / _norm ORDER BY _dim)
             FROM (SELECT unnest(a) AS _x, unnest(range(len(a))) AS _dim, norm(a) AS _norm)) END;

-- How far a vector reaches along a direction: its inner product with the unit vector of that direction.
-- @param a a vector
-- @param direction a vector of the same width; its length does not matter
-- @returns DOUBLE; NULL where either is NULL or the direction is all zeros
-- @example select project([3, 4], [0, 2]) = 4
CREATE OR REPLACE MACRO project(a, direction) AS dot(a, direction) / nullif(norm(direction), 0);

-- Mean of a list of vectors, dimension by dimension; `vector_mean` is the same over rows.
-- @param vectors a list of vectors of the same width
-- @returns DOUBLE[]; NULL for an empty list
-- @example select _mean_of_list([[1, 2], [3, 6]]) = [2, 4]
CREATE OR REPLACE MACRO _mean_of_list(vectors) AS
  (SELECT CASE WHEN min(_least_width) <> max(_most_width)
               THEN error('vectors of different width: ' || min(_least_width) || ' and ' || max(_most_width)
                          || ' dimensions')
               ELSE list(_mean ORDER BY _dim) END
   FROM (SELECT _dim, avg(_x) AS _mean, min(_width) AS _least_width, max(_width) AS _most_width
         FROM (SELECT unnest(_one) AS _x, unnest(range(len(_one))) AS _dim, len(_one) AS _width
               FROM (SELECT unnest(vectors) AS _one))
         GROUP BY _dim));

-- Mean over rows of vectors, an aggregate like `avg`; rows with NULL are left out.
-- @param vector a column of vectors of the same width
-- @returns DOUBLE[]; NULL over no rows
-- @example select vector_mean(v) = [2, 4] from (values ([1, 2]), ([3, 6])) t(v)
CREATE OR REPLACE MACRO vector_mean(vector) AS _mean_of_list(list(vector));

-- Cosine of two vectors after a common mean was taken off both.
--
-- Last-token states share a large common part, so raw cosines crowd together near 1; without that part they
-- spread out.
-- @param a a vector
-- @param b a vector of the same width
-- @param mean a vector of the same width, the mean of a population that a and b belong to
-- @returns DOUBLE in -1 … 1; NULL where any is NULL or a difference is all zeros
-- @example select centered_cosine([2, 1], [1, 2], [1, 1]) = 0
CREATE OR REPLACE MACRO centered_cosine(a, b, mean) AS
  CASE WHEN a IS NOT NULL AND b IS NOT NULL AND mean IS NOT NULL
       THEN (SELECT _clamp(sum((_x::DOUBLE - _m) * (_y::DOUBLE - _m))
                           / nullif(sqrt(sum((_x::DOUBLE - _m) ** 2)) * sqrt(sum((_y::DOUBLE - _m) ** 2)), 0))
             FROM (SELECT unnest(a) AS _x, unnest(_as_wide(a, b)) AS _y, unnest(_as_wide(a, mean)) AS _m)) END;
