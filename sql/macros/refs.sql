-- The run of a ref, as it is named there.
-- @param ref a ref as in `states_by_ref`
-- @returns VARCHAR, what `resolve_run` takes
-- @example select _ref_run('joy_1:0:final') = 'joy_1' and _ref_run('latest:joy:0:final') = 'latest:joy'
-- @example select _ref_run('latest:0:final') = 'latest' and _ref_run('latest:row@name:a:b') = 'latest'
CREATE OR REPLACE MACRO _ref_run(ref) AS
  CASE WHEN regexp_matches(ref, '^latest:[^:]')
            AND NOT regexp_matches(ref, '^latest:([0-9]+|reference|example|row(@[^:]*)?)(:|$)')
       THEN 'latest:' || split_part(ref, ':', 2)
       ELSE split_part(ref, ':', 1) END;

-- What of its run a ref names: initial, final, snapshot, token, reference, example or row.
-- @param rest the ref without its run
-- @returns VARCHAR; an error that shows the forms where it is none of them
-- @example select _ref_kind('') = 'initial' and _ref_kind('0:snapshot:3') = 'snapshot' and _ref_kind('row:7') = 'row'
CREATE OR REPLACE MACRO _ref_kind(rest) AS
  CASE WHEN regexp_matches(rest, '^[0-9]*$') THEN 'initial'
       WHEN regexp_matches(rest, '^[0-9]+:(initial|final)$') THEN split_part(rest, ':', 2)
       WHEN regexp_matches(rest, '^[0-9]+:(snapshot|token):[0-9]+$') THEN split_part(rest, ':', 2)
       WHEN regexp_matches(rest, '(?s)^reference:.') THEN 'reference'
       WHEN regexp_matches(rest, '^example:[0-9]+$') THEN 'example'
       WHEN regexp_matches(rest, '(?s)^row(@[^:]+)?:.') THEN 'row'
       ELSE error('''' || rest || ''' names no state of a run; such do: RUN, RUN:0:final, RUN:0:snapshot:3, '
                  || 'RUN:0:token:12, RUN:reference:LABEL, RUN:example:0, RUN:row:ID') END;

-- Refs taken apart.
-- @param refs a list of refs as in `states_by_ref`
-- @column place 0-based place in the list
-- @column ref the ref
-- @column run_id id of its run
-- @column kind initial, final, snapshot, token, reference, example or row
-- @column prompt 0-based conversation; NULL for references, examples and rows
-- @column number message of a snapshot, position of a token, place of an example; NULL for others
-- @column label label of a reference; NULL for others
-- @column row_id id of a dataset's row; NULL for others
-- @column selector which position of a row, or mean; NULL for others
-- @example select kind, number from _refs_of(['latest', 'latest:0:snapshot:3'])
CREATE OR REPLACE MACRO _refs_of(refs) AS TABLE
SELECT p.place, p.ref, resolve_run(p.run) AS run_id, p.kind,
       CASE WHEN p.kind IN ('initial', 'final', 'snapshot', 'token')
            THEN coalesce(try_cast(split_part(p.rest, ':', 1) AS INTEGER), CASE WHEN p.rest = '' THEN 0 ELSE -1 END)
            END AS prompt,
       CASE WHEN p.kind IN ('snapshot', 'token', 'example')
            THEN coalesce(try_cast(regexp_extract(p.rest, '[0-9]+$') AS INTEGER), -1) END AS number,
       CASE WHEN p.kind = 'reference' THEN substr(p.rest, 11) END AS label,
       CASE WHEN p.kind = 'row' THEN substr(p.rest, instr(p.rest, ':') + 1) END AS row_id,
       CASE WHEN p.kind = 'row' THEN coalesce(nullif(regexp_extract(p.rest, '^row@([^:]+):', 1), ''), 'last') END
         AS selector
FROM (
  SELECT *, _ref_kind(rest) AS kind
  FROM (SELECT *, substr(ref, len(_ref_run(ref)) + 2) AS rest, _ref_run(ref) AS run
        FROM (SELECT unnest(refs) AS ref, unnest(range(len(refs)))::INTEGER AS place))
) AS p;

-- Whether some refs name one of some kinds, which decides what has to be opened.
-- @param refs a list of refs as in `states_by_ref`
-- @param pattern a regular expression for what follows the run
-- @returns BOOLEAN
-- @example select _refs_like(['a', 'b:row:7'], '^row') and not _refs_like(['a'], '^row')
CREATE OR REPLACE MACRO _refs_like(refs, pattern) AS
  len([each_ref FOR each_ref IN refs IF regexp_matches(substr(each_ref, len(_ref_run(each_ref)) + 2), pattern)]) > 0;
