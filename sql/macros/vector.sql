-- The second of two vectors, or an error that names both widths where they differ.
-- @param a a vector
-- @param b a vector
-- @returns b
-- @example select _as_wide([1, 2], [3, 4]) = [3, 4]
CREATE OR REPLACE MACRO _as_wide(a, b) AS
  CASE WHEN len(a) <> len(b)
       THEN error('vectors of different width: ' || len(a) || ' and ' || len(b) || ' dimensions') ELSE b END;

-- A cosine brought back into -1 … 1, which rounding can leave by a hair; NaN stays NaN.
-- @param x a column; an expression would be computed three times
-- @returns DOUBLE
-- @example select _clamp(1.0000000000000002) = 1
CREATE OR REPLACE MACRO _clamp(x) AS
  CASE WHEN abs(x) < 1.001 THEN greatest(-1::DOUBLE, least(1::DOUBLE, x)) ELSE x END;

-- Inner product of two vectors.
-- @param a a vector
-- @param b a vector of the same width
-- @returns DOUBLE; NULL where either is NULL
-- @example select dot([1, 2, 3], [4, 5, 6]) = 32
CREATE OR REPLACE MACRO dot(a, b) AS list_inner_product(a::DOUBLE[], _as_wide(a, b)::DOUBLE[]);

-- Euclidean length of a vector.
-- @param a a vector
-- @returns DOUBLE; NULL for NULL
-- @example select norm([3, 4]) = 5
CREATE OR REPLACE MACRO norm(a) AS sqrt(list_inner_product(a::DOUBLE[], a::DOUBLE[]));

-- Cosine of the angle between two vectors.
--
-- Rounded to 15 decimals, so that rounding errors cannot carry it past 1. For thousands of pairs `compare_pairs` is
-- faster.
-- @param a a vector
-- @param b a vector of the same width
-- @returns DOUBLE in -1 … 1; NULL where either vector is NULL or all zeros
-- @example select cosine([1, 0], [1, 1]) between 0.7071 and 0.7072
-- @example
-- select site, layer, cosine(a.vector, b.vector)
-- from states_of('latest') a join states_of('latest') b using (prompt_id, site, layer)
-- where a.state = 'initial' and b.state = 'final'
CREATE OR REPLACE MACRO cosine(a, b) AS
  round(dot(a, b) / nullif(sqrt(list_inner_product(a::DOUBLE[], a::DOUBLE[])
                                * list_inner_product(b::DOUBLE[], b::DOUBLE[])), 0), 15);

-- Mean absolute difference over the dimensions. For thousands of pairs `compare_pairs` is faster.
-- @param a a vector
-- @param b a vector of the same width
-- @returns DOUBLE, 0 for equal vectors; NULL where either is NULL
-- @example select mae([1, 2], [2, 4]) = 1.5
CREATE OR REPLACE MACRO mae(a, b) AS
  list_avg([abs(_pair[1]::DOUBLE - _pair[2]) FOR _pair IN list_zip(a, _as_wide(a, b))]);

-- Euclidean distance between two vectors.
-- @param a a vector
-- @param b a vector of the same width
-- @returns DOUBLE, 0 for equal vectors; NULL where either is NULL
-- @example select euclidean([0, 0], [3, 4]) = 5
CREATE OR REPLACE MACRO euclidean(a, b) AS list_distance(a::DOUBLE[], _as_wide(a, b)::DOUBLE[]);

-- A number, or the largest float where it is NaN or infinite.
-- @param x a number that is not negative
-- @returns DOUBLE; NULL for NULL
-- @example select _finite(2) = 2 and _finite('nan'::FLOAT) > 3e38
CREATE OR REPLACE MACRO _finite(x) AS CASE WHEN x >= 3.4028234e38 THEN 3.4028234663852886e38 ELSE x END;

-- A number for each dimension of a vector, whose k largest are the k largest dimensions by absolute value; of equal
-- ones the first counts as larger. `_dim_of` tells the dimension back.
--
-- A float has 24 significant bits and a double 53, so the dimension fits below the value without changing the
-- order of different values. Infinity and NaN count as the largest float.
-- @param x value of the dimension
-- @param dim 0-based dimension
-- @returns DOUBLE; NULL for NULL
-- @example select _magnitude(-2.0, 7) > _magnitude(2.0, 8) and _magnitude(2.0, 8) > _magnitude(1.9999, 0)
CREATE OR REPLACE MACRO _magnitude(x, dim) AS
  (_finite(abs(x::FLOAT)::DOUBLE) + 1e-300) * (1 - dim * 1e-13);

-- The dimension in a magnitude.
--
-- `max(magnitude, k)` carries one number a dimension, where `max_by` carries two and takes twice as long.
-- @param magnitude what `_magnitude` gave
-- @returns DOUBLE, the 0-based dimension
-- @example select _dim_of(_magnitude(-2.5, 2047)) = 2047 and _dim_of(_magnitude(0, 3)) = 3
-- @example select _dim_of(_magnitude('nan'::FLOAT, 7)) = 7
CREATE OR REPLACE MACRO _dim_of(magnitude) AS
  round((1 - magnitude / greatest(magnitude::FLOAT::DOUBLE, 1e-300)) * 1e13);

-- How many dimensions a top fraction of a vector has: `max(1, floor(fraction · width))`.
-- @param width width of the vector
-- @param fraction fraction of the dimensions
-- @returns BIGINT
-- @example select _top_count(576, 0.01) = 5
CREATE OR REPLACE MACRO _top_count(width, fraction) AS greatest(1, floor(fraction * width))::BIGINT;

-- Dimensions of the k largest values of a vector by absolute value, largest first; ties go to the first dimension.
-- @param a a vector
-- @param k how many dimensions; all of them where the vector has no more
-- @returns BIGINT[] of 0-based dimensions; NULL for NULL
-- @example select top_dims([0.5, -3, 2], 2) = [1, 2]
CREATE OR REPLACE MACRO top_dims(a, k) AS
  (SELECT max_by(_dim, _magnitude(_x, _dim), k) FROM (SELECT unnest(a) AS _x, unnest(range(len(a))) AS _dim));

-- A vector as rows of eight dimensions, the last filled up with zeros.
--
-- What is unnested costs by the row: eight dimensions a row take a fourth of the time.
-- @param vector a vector
-- @returns a list of unnamed structs
-- @example select _eights(range(10))[2] = row(8, 9, 0, 0, 0, 0, 0, 0)
CREATE OR REPLACE MACRO _eights(vector) AS
  [row(vector[_at], coalesce(vector[_at + 1], 0), coalesce(vector[_at + 2], 0), coalesce(vector[_at + 3], 0),
       coalesce(vector[_at + 4], 0), coalesce(vector[_at + 5], 0), coalesce(vector[_at + 6], 0),
       coalesce(vector[_at + 7], 0))
   FOR _at IN range(1, len(vector) + 1, 8)];

-- How many elements two lists without duplicates share.
-- @param a a list
-- @param b a list
-- @returns BIGINT
-- @example select _shared([1, 2, 3], [3, 4, 1]) = 2
CREATE OR REPLACE MACRO _shared(a, b) AS len(a) + len(b) - list_unique(list_concat(a, b));

-- Jaccard overlap of two sets of the same size, from the size of their intersection.
-- @param shared how many elements the sets share
-- @param k size of each set
-- @returns DOUBLE in 0 … 1
-- @example select _jaccard(5, 5) = 1 and _jaccard(0, 5) = 0
CREATE OR REPLACE MACRO _jaccard(shared, k) AS shared / (2.0::DOUBLE * k - shared);

-- Overlap of the dimensions of two columns of magnitudes, an aggregate.
-- @param top_a the largest magnitudes of a vector, one a row
-- @param top_b the largest magnitudes of another, as many
-- @returns DOUBLE in 0 … 1, the size of the intersection over that of the union; NULL where one column has no values
-- @example
-- select _shared_fraction(a, b) = 1 / 3
-- from (values (_magnitude(4, 0), _magnitude(1, 5)), (_magnitude(2, 5), _magnitude(3, 1))) t(a, b)
CREATE OR REPLACE MACRO _shared_fraction(top_a, top_b) AS
  _jaccard(_shared(list(_dim_of(top_a)) FILTER (top_a IS NOT NULL), list(_dim_of(top_b)) FILTER (top_b IS NOT NULL)),
           count(top_a));

-- Overlap of the dimensions of two equally long lists of magnitudes.
-- @param top_a the largest magnitudes of a vector
-- @param top_b the largest magnitudes of another
-- @returns DOUBLE in 0 … 1, the size of the intersection over that of the union; NULL where either list is NULL
-- @example select _overlap([_magnitude(4, 0), _magnitude(2, 5)], [_magnitude(1, 5), _magnitude(3, 1)]) = 1 / 3
CREATE OR REPLACE MACRO _overlap(top_a, top_b) AS
  (SELECT _shared_fraction(_a, _b) FROM (SELECT unnest(top_a) AS _a, unnest(top_b) AS _b));

-- Overlap of the dimensions in which two vectors are largest by absolute value.
--
-- Both sets have `max(1, floor(fraction · width))` dimensions; ties go to the first dimension. For thousands of pairs
-- `compare_pairs` is faster.
-- @param a a vector
-- @param b a vector of the same width
-- @param fraction fraction of the dimensions to compare; give it by name
-- @returns DOUBLE in 0 … 1, the size of the intersection over that of the union; NULL where either vector is NULL
-- @example select top_jaccard([1, 9, 8, 0], [9, 8, 1, 0], fraction := 0.5) between 0.333 and 0.334
CREATE OR REPLACE MACRO top_jaccard(a, b, fraction := 0.01) AS
  (SELECT _shared_fraction(_p, _q)
   FROM (SELECT unnest(_top_a) AS _p, unnest(_top_b) AS _q
         FROM (SELECT max(_magnitude(_x, _dim), _k) AS _top_a, max(_magnitude(_y, _dim), _k) AS _top_b
               FROM (SELECT unnest(_a) AS _x, unnest(_b) AS _y, unnest(range(len(_a))) AS _dim, _k
                     FROM (SELECT a AS _a, _as_wide(a, b) AS _b, _top_count(len(a), fraction) AS _k)))));

-- How far the layers of a comparison spread, and which are the extremes, an aggregate; `unnest` gives its columns.
-- @param cosine a column of cosines, one a layer
-- @param mae a column of mean absolute differences
-- @param jaccard a column of overlaps
-- @param layer a column of layers
-- @returns a struct of layers, cosine_mean, cosine_std (population), cosine_median, cosine_min, cosine_min_layer and
--   the same of mae, with its maximum, and of jaccard
-- @example
-- select unnest(_spread(cosine, 0, 1, layer))
-- from (values (0.5, 3), (0.1, 4)) t(cosine, layer)
CREATE OR REPLACE MACRO _spread(cosine, mae, jaccard, layer) AS {
  'layers': count(*),
  'cosine_mean': avg(cosine), 'cosine_std': stddev_pop(cosine), 'cosine_median': median(cosine),
  'cosine_min': min(cosine), 'cosine_min_layer': min_by(layer, (cosine, layer)) FILTER (cosine IS NOT NULL),
  'mae_mean': avg(mae), 'mae_std': stddev_pop(mae), 'mae_median': median(mae),
  'mae_max': max(mae), 'mae_max_layer': max_by(layer, (mae, -layer)),
  'jaccard_mean': avg(jaccard), 'jaccard_std': stddev_pop(jaccard), 'jaccard_median': median(jaccard),
  'jaccard_min': min(jaccard), 'jaccard_min_layer': min_by(layer, (jaccard, layer))
};
