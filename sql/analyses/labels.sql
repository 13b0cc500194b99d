-- The dataset's rows, with the columns that it has, of their own types.
--
-- Of several runs a column that one does not have is NULL there. No rows for conversations.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset; the other columns are those of the dataset
-- @example from labels_of('latest') limit 5
CREATE OR REPLACE MACRO labels_of(run_id) AS TABLE
SELECT "a row of the dataset".*
FROM read_parquet(_files_of('labels', run_id, '/*.parquet'), hive_partitioning = false, union_by_name = true)
  AS "a row of the dataset"
WHERE _in_place();

-- The dataset's rows as JSON, in which a column can be named by an argument.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset
-- @column fields the row, as the text of a JSON object
-- @example select fields from _label_fields('latest')
CREATE OR REPLACE MACRO _label_fields(run_id) AS TABLE
-- A dataset may have a column of any name but two; that of the relation is none that anybody gives.
SELECT "a row of the dataset".run_id, "a row of the dataset".prompt_id,
       to_json("a row of the dataset")::VARCHAR AS fields
FROM labels_of(run_id) AS "a row of the dataset";

-- One column of the dataset, as text: the label of each row.
--
-- A whole number has no `.0`, so that 1 and 1.0 are one label; dates and times are as DuckDB writes them.
-- @param run_id a run id, `latest`, or a list of these
-- @param label_column name of a column of the dataset, of any characters; an error that names all where there is none
-- @column run_id id of the run
-- @column prompt_id 0-based row of the dataset
-- @column label the value as text; NULL where there is none
-- @example select label, count(*) from label_values('latest', 'mood') group by label
CREATE OR REPLACE MACRO label_values(run_id, label_column) AS TABLE
SELECT f.run_id, f.prompt_id,
       CASE WHEN json_exists(f.fields, _pointer(label_column))
            THEN _label_text(json_extract(f.fields, _pointer(label_column)))
            ELSE error('the dataset has no column ''' || label_column || '''; it has: '
                       || array_to_string(json_keys(f.fields)[3:], ', ')) END AS label
FROM _label_fields(run_id) AS f;

-- The columns of a run's dataset: what labels there are.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column label_column name of the column
-- @column kind number, boolean or text (dates too); NULL where every value is missing
-- @column n rows that have a value
-- @column missing rows that have none
-- @column labels different values
-- @column least the first value: of numbers the smallest
-- @column greatest the last value
-- @example select label_column, kind, labels from label_columns('latest')
CREATE OR REPLACE MACRO label_columns(run_id) AS TABLE
WITH names AS (
  SELECT f.run_id, f.fields, unnest(json_keys(f.fields)[3:]) AS name,
         unnest(range(len(json_keys(f.fields)) - 2)) AS place
  FROM _label_fields(run_id) AS f
), cells AS (
  SELECT n.run_id, n.name, n.place, json_type(n.fields, _pointer(n.name)) AS kind,
         _label_text(json_extract(n.fields, _pointer(n.name))) AS label
  FROM names AS n
), kinds AS (
  SELECT c.run_id, c.name, min(c.place) AS place,
         max(CASE WHEN c.kind = 'VARCHAR' THEN 'text' WHEN c.kind = 'BOOLEAN' THEN 'boolean'
                  WHEN c.kind <> 'NULL' THEN 'number' END) AS kind,
         count(c.label) AS n, count(*) - count(c.label) AS missing, count(DISTINCT c.label) AS labels,
         min(c.label) AS first, max(c.label) AS last, min_by(c.label, try_cast(c.label AS DOUBLE)) AS smallest,
         max_by(c.label, try_cast(c.label AS DOUBLE)) AS largest
  FROM cells AS c
  GROUP BY c.run_id, c.name
)
SELECT k.run_id, k.name AS label_column, k.kind, k.n, k.missing, k.labels,
       CASE WHEN k.kind = 'number' THEN k.smallest ELSE k.first END AS least,
       CASE WHEN k.kind = 'number' THEN k.largest ELSE k.last END AS greatest
FROM kinds AS k
ORDER BY k.run_id, k.place;

-- Direction from one label to another, per site and layer: the mean of the rows labelled `a` minus that of those
-- labelled `b`.
--
-- What `direction` is for references. Read one site and layer where that is enough: no other is opened. No rows where
-- either label has none.
-- @param run_id a run id, `latest`, or a list of these
-- @param label_column name of a column of the dataset
-- @param a the label that the direction points to: a text, number, true or false
-- @param b the label that it points away from
-- @param selector last, all, message_ends, a field of the dataset's template, or mean; give it by name
-- @column run_id id of the run
-- @column site name of the site
-- @column layer 0-based decoder block
-- @column vector mean of `a` minus mean of `b`
-- @column norm length of the direction
-- @column n_positive vectors that the mean of `a` is over
-- @column n_negative vectors that the mean of `b` is over
-- @example
-- select layer, norm from label_direction('latest', 'mood', 'joy', 'fear') where site = 'hidden_out'
-- @example
-- select v.prompt_id, project(v.vector, d.vector)
-- from vectors_of('latest', 1, 'hidden_out') v
-- join label_direction('latest', 'mood', 'joy', 'fear') d on d.layer = 1 and d.site = 'hidden_out'
CREATE OR REPLACE MACRO label_direction(run_id, label_column, a, b, selector := 'last') AS TABLE
WITH labelled AS (
  SELECT l.run_id, l.prompt_id, l.label = _label_text(to_json(a)) AS is_positive
  FROM label_values(run_id, label_column) AS l
  WHERE l.label IN (_label_text(to_json(a)), _label_text(to_json(b)))
), dims AS (
  SELECT v.run_id, v.site, v.layer, l.is_positive, unnest(v.vector) AS x, unnest(range(len(v.vector))) AS dim
  FROM _sites_of(run_id, selector) AS v
  JOIN labelled AS l ON l.run_id = v.run_id AND l.prompt_id = v.prompt_id
), means AS (
  SELECT d.run_id, d.site, d.layer, d.dim,
         avg(d.x) FILTER (d.is_positive) - avg(d.x) FILTER (NOT d.is_positive) AS difference,
         count(*) FILTER (d.is_positive) AS n_positive, count(*) FILTER (NOT d.is_positive) AS n_negative
  FROM dims AS d
  GROUP BY d.run_id, d.site, d.layer, d.dim
)
SELECT m.run_id, m.site, m.layer, list(m.difference ORDER BY m.dim) AS vector, sqrt(sum(m.difference ** 2)) AS norm,
       max(m.n_positive) AS n_positive, max(m.n_negative) AS n_negative
FROM means AS m
WHERE m.difference IS NOT NULL
GROUP BY m.run_id, m.site, m.layer
ORDER BY m.run_id, m.site, m.layer;

-- How long the vectors of each label are, per site and layer.
-- @param run_id a run id, `latest`, or a list of these
-- @param label_column name of a column of the dataset; rows in which it is NULL are left out
-- @param selector last, all, message_ends, a field of the dataset's template, or mean; give it by name
-- @column run_id id of the run
-- @column site name of the site
-- @column layer 0-based decoder block
-- @column label the label
-- @column n vectors of the label
-- @column norm mean length
-- @column norm_std population standard deviation of the lengths
-- @example select layer, label, norm from label_norms('latest', 'mood') where site = 'hidden_out'
CREATE OR REPLACE MACRO label_norms(run_id, label_column, selector := 'last') AS TABLE
SELECT v.run_id, v.site, v.layer, l.label, count(*) AS n, avg(norm(v.vector)) AS norm,
       stddev_pop(norm(v.vector)) AS norm_std
FROM _sites_of(run_id, selector) AS v
JOIN label_values(run_id, label_column) AS l ON l.run_id = v.run_id AND l.prompt_id = v.prompt_id
WHERE l.label IS NOT NULL
GROUP BY v.run_id, v.site, v.layer, l.label
ORDER BY v.run_id, v.site, v.layer, l.label;

-- How alike vectors of one label are beside those of different labels, per site and layer.
--
-- Over all pairs, without forming them: the cost grows with the vectors, not with their square. The vectors of a run
-- share a large common part, which lifts all cosines; the centred columns are without it, and there 0 is chance and
-- 1 a label whose vectors are all the same. For labels of few values: a memory of every label's mean is needed.
-- @param run_id a run id, `latest`, or a list of these
-- @param label_column name of a column of the dataset; rows in which it is NULL are left out
-- @param selector last, all, message_ends, a field of the dataset's template, or mean; give it by name
-- @column run_id id of the run
-- @column site name of the site
-- @column layer 0-based decoder block
-- @column labels different labels
-- @column n vectors of all of them; those of length 0 are left out
-- @column within mean cosine over the pairs of vectors of the same label; NULL where each has one
-- @column between mean cosine over the pairs of vectors of different labels; NULL where there is one label
-- @column centered_within mean inner product over pairs of the same label, after the mean over all was taken off,
--   over the mean square length that is left
-- @column centered_between likewise over pairs of different labels
-- @example
-- select layer, within, between, centered_within from label_similarity('latest', 'mood') where site = 'hidden_out'
CREATE OR REPLACE MACRO label_similarity(run_id, label_column, selector := 'last') AS TABLE
WITH labelled AS (
  SELECT v.run_id, v.site, v.layer, l.label, v.vector, norm(v.vector) AS norm
  FROM _sites_of(run_id, selector) AS v
  JOIN label_values(run_id, label_column) AS l ON l.run_id = v.run_id AND l.prompt_id = v.prompt_id
  WHERE l.label IS NOT NULL
), sums AS (  -- of each label: its vectors x added up, and their directions x / |x|
  SELECT d.run_id, d.site, d.layer, d.label, d.dim, count(*) AS n, sum(d.x::DOUBLE) AS x, sum(d.x / d.norm) AS u,
         sum(d.x::DOUBLE * d.x) AS square
  FROM (SELECT l.run_id, l.site, l.layer, l.label, l.norm, unnest(l.vector) AS x,
               unnest(range(len(l.vector))) AS dim
        FROM labelled AS l WHERE l.norm > 0) AS d
  GROUP BY d.run_id, d.site, d.layer, d.label, d.dim
), dims AS (
  SELECT s.run_id, s.site, s.layer, s.dim, count(*) AS labels, sum(s.n) AS n, sum(s.n * s.n) AS n2,
         sum(s.u * s.u) AS own, sum(s.u) ** 2 AS whole, sum(s.square) - sum(s.x) ** 2 / sum(s.n) AS spread,
         -- the same of x − m, with m the mean over all
         sum(s.x ** 2) - 2 * sum(s.n * s.x) * sum(s.x) / sum(s.n)
           + sum(s.n * s.n) * (sum(s.x) / sum(s.n)) ** 2 AS apart
  FROM sums AS s
  GROUP BY s.run_id, s.site, s.layer, s.dim
), totals AS (
  SELECT d.run_id, d.site, d.layer, max(d.labels) AS labels, max(d.n)::DOUBLE AS n, max(d.n2)::DOUBLE AS n2,
         sum(d.own) AS own, sum(d.whole) AS whole, greatest(0, sum(d.spread)) AS spread, sum(d.apart) AS apart
  FROM dims AS d
  GROUP BY d.run_id, d.site, d.layer
)
SELECT t.run_id, t.site, t.layer, t.labels, t.n::BIGINT AS n, (t.own - t.n) / nullif(t.n2 - t.n, 0) AS within,
       (t.whole - t.own) / nullif(t.n * t.n - t.n2, 0) AS between,
       (t.apart - t.spread) / nullif(t.n2 - t.n, 0) / nullif(t.spread / t.n, 0) AS centered_within,
       -t.apart / nullif(t.n * t.n - t.n2, 0) / nullif(t.spread / t.n, 0) AS centered_between
FROM totals AS t
ORDER BY t.run_id, t.site, t.layer;
