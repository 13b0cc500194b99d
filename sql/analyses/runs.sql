-- Every run, newest first: what `alab runs` shows.
-- @column run_id id of the run
-- @column scenario name of the scenario
-- @column model_id model as the scenario names it
-- @column prompts conversations in the run
-- @column steps forward passes whose tensors were kept
-- @column tokens tokens of all conversations, generated ones included
-- @column mb size of the run's tensors in the lake, megabytes (1,000,000 bytes)
-- @column created_at when the capture began, UTC
-- @example select run_id, mb from run_overview() where model_id like '%smollm2%'
CREATE OR REPLACE MACRO run_overview() AS TABLE
SELECT r.run_id, r.scenario, r.model_id, coalesce(p.prompts, 0) AS prompts, coalesce(s.steps, 0) AS steps,
       coalesce(p.tokens, 0) AS tokens, round(r.bytes / 1e6, 3) AS mb,
       date_trunc('second', r.created_at) AS created_at
FROM runs AS r
LEFT JOIN (SELECT run_id, count(*) AS prompts, CAST(sum(n_prompt_tokens + n_generated) AS BIGINT) AS tokens
           FROM prompts GROUP BY run_id) AS p USING (run_id)
LEFT JOIN (SELECT run_id, count(*) AS steps FROM steps GROUP BY run_id) AS s USING (run_id)
ORDER BY r.created_at DESC, r.run_id DESC;

-- What every run costs on disk, largest first: what `alab du` shows. Sizes are megabytes (1,000,000 bytes).
-- @column run_id id of the run
-- @column activations tensors of every token and layer
-- @column attention attention weights
-- @column outputs embeddings and logits
-- @column states last-token states
-- @column metadata tables such as steps and tokens
-- @column other any further dataset
-- @column total all of them together
-- @example select sum(total) from run_sizes()
CREATE OR REPLACE MACRO run_sizes() AS TABLE
SELECT run_id,
       round(coalesce(sum(n_bytes) FILTER (dataset = 'activations'), 0) / 1e6, 3) AS activations,
       round(coalesce(sum(n_bytes) FILTER (dataset = 'attention'), 0) / 1e6, 3) AS attention,
       round(coalesce(sum(n_bytes) FILTER (dataset = 'outputs'), 0) / 1e6, 3) AS outputs,
       round(coalesce(sum(n_bytes) FILTER (dataset = 'states'), 0) / 1e6, 3) AS states,
       round(coalesce(sum(n_bytes) FILTER (dataset = 'metadata'), 0) / 1e6, 3) AS metadata,
       round(coalesce(sum(n_bytes) FILTER (
         dataset NOT IN ('activations', 'attention', 'outputs', 'states', 'metadata')), 0) / 1e6, 3) AS other,
       round(sum(n_bytes) / 1e6, 3) AS total
FROM files
GROUP BY run_id
ORDER BY sum(n_bytes) DESC, run_id;

-- The conversations of one run.
-- @param run_id a run id or `latest`
-- @column prompt_id 0-based conversation within the run
-- @column prompt_tokens tokens in the prefill
-- @column generated tokens generated
-- @column stop_reason eos or length
-- @column reply the generated text
-- @example select prompt_id, reply from run_prompts('latest')
CREATE OR REPLACE MACRO run_prompts(run_id) AS TABLE
SELECT p.prompt_id, p.n_prompt_tokens AS prompt_tokens, p.n_generated AS generated, p.stop_reason,
       p.generated_text AS reply
FROM prompts AS p JOIN (SELECT resolve_run(run_id) AS asked) ON p.run_id = asked
ORDER BY p.prompt_id;

-- The forward passes of one run, with the token that each chose.
-- @param run_id a run id or `latest`
-- @column prompt_id 0-based conversation within the run
-- @column step 0-based forward pass
-- @column kind prefill or decode
-- @column seq_len tokens in the sequence, this step's input included
-- @column generated_token token chosen from this step's distribution
-- @column logprob its log-probability, nats; NULL where it is not among the stored top tokens
-- @column entropy entropy of the next-token distribution, nats
-- @example select step, generated_token, logprob from run_steps('latest') order by logprob limit 5
CREATE OR REPLACE MACRO run_steps(run_id) AS TABLE
SELECT s.prompt_id, s.step, s.kind, s.seq_len, s.generated_token,
       CASE WHEN s.generated_token_id = s.argmax_token_id THEN s.argmax_logprob ELSE t.logprob END AS logprob,
       s.entropy
FROM steps AS s
JOIN (SELECT resolve_run(run_id) AS asked) ON s.run_id = asked
LEFT JOIN top_tokens AS t ON t.run_id = s.run_id AND t.prompt_id = s.prompt_id AND t.step = s.step
                         AND t.token_id = s.generated_token_id
ORDER BY s.prompt_id, s.step;

-- The sites of one run, layers that are alike in one row.
-- @param run_id a run id or `latest`
-- @column site name of the site
-- @column layers layers that this row is about, such as `0-11, 14`; NULL for embeddings and logits
-- @column width width of the vectors; NULL where the site was not captured
-- @column reason why the site was not captured; NULL where it was
-- @column out_of_range values outside the range of store_dtype, kept unrounded
-- @column nonfinite NaN and infinite values that the model produced
-- @example select site, layers from run_sites('latest') where reason is not null
CREATE OR REPLACE MACRO run_sites(run_id) AS TABLE
WITH mine AS (
  SELECT s.* EXCLUDE (run_id),
         s.layer - row_number() OVER (PARTITION BY s.site, s.width, s.reason ORDER BY s.layer) AS island
  FROM sites AS s JOIN (SELECT resolve_run(run_id) AS asked) ON s.run_id = asked
), islands AS (
  SELECT site, width, reason, min(layer) AS first, max(layer) AS last,
         sum(n_out_of_range) AS outside, sum(n_nonfinite) AS broken
  FROM mine GROUP BY site, width, reason, island
)
SELECT site, string_agg(CASE WHEN first = last THEN first::VARCHAR ELSE first || '-' || last END, ', ' ORDER BY first)
         AS layers,
       width, reason, CAST(sum(outside) AS BIGINT) AS out_of_range, CAST(sum(broken) AS BIGINT) AS nonfinite
FROM islands
GROUP BY site, width, reason
ORDER BY min(first) IS NULL,
         list_position(['hidden_in', 'hidden_out', 'q', 'k', 'v', 'attn_out', 'mlp_gate', 'mlp_up', 'mlp_down_in',
                        'mlp_down_out'], site), site, min(first);

-- What one run costs on disk, by dataset.
-- @param run_id a run id or `latest`
-- @column dataset activations, attention, outputs, states, metadata, …
-- @column files number of files
-- @column n_rows rows in them
-- @column mb their size, megabytes (1,000,000 bytes)
-- @example select dataset, mb from run_files('latest')
CREATE OR REPLACE MACRO run_files(run_id) AS TABLE
SELECT f.dataset, count(*) AS files, CAST(sum(f.n_rows) AS BIGINT) AS n_rows, round(sum(f.n_bytes) / 1e6, 3) AS mb
FROM files AS f JOIN (SELECT resolve_run(run_id) AS asked) ON f.run_id = asked
GROUP BY f.dataset
ORDER BY sum(f.n_bytes) DESC;

-- What the reader of one run should know about it: warnings of the capture, and bulky datasets that were dropped.
-- @param run_id a run id, `latest`, or a list of these
-- @column run_id id of the run
-- @column prompt_id conversation that it concerns; NULL for the whole run
-- @column code short name of the kind of warning
-- @column message the warning in words
-- @example select message from run_warnings('latest')
CREATE OR REPLACE MACRO run_warnings(run_id) AS TABLE
SELECT w.run_id, w.prompt_id, w.code, w.message
FROM warnings AS w JOIN (SELECT unnest(_run_ids(run_id)) AS asked) ON w.run_id = asked
UNION ALL
SELECT asked, NULL, 'dropped',
       'the ' || dataset || ' of this run were dropped; its states and metadata are still there'
FROM (SELECT unnest(_run_ids(run_id)) AS asked)
CROSS JOIN (SELECT unnest(['activations', 'attention', 'outputs']) AS dataset)
WHERE NOT _has(dataset, asked)
  AND EXISTS (SELECT 1 FROM sites AS s WHERE s.run_id = asked AND s.module IS NOT NULL AND dataset = CASE
        WHEN s.site IN ('embeddings', 'logits') THEN 'outputs' WHEN s.site = 'attention' THEN 'attention'
        ELSE 'activations' END);
