-- The states that an address names: the run and model, the token that each sits on, its text, and what was kept of it.
WITH there AS (
  SELECT s.place, any_value(s.prompt_id) AS prompt_id, any_value(s.position) AS position,
         list(DISTINCT s.site ORDER BY s.site) AS sites, list(DISTINCT s.layer ORDER BY s.layer) AS layers
  FROM states_by_ref($refs) AS s GROUP BY s.place
), seen AS (
  SELECT t.place, max(t.position) AS last FROM tokens_by_ref($refs) AS t GROUP BY t.place
)
SELECT a.place, a.ref, a.run_id, a.kind, a.prompt, a.number, a.label, a.row_id, a.selector, r.scenario, r.model_id,
       coalesce(r.weights_hash, r.model_id) AS weights, r.num_layers, r.hidden_size AS width,
       t.prompt_id, t.position, t.sites, t.layers,
       CASE WHEN a.selector = 'mean' THEN NULL ELSE coalesce(k.token, o.token) END AS token,
       CASE WHEN coalesce(k.is_generated, o.is_generated) THEN 'generated'
            WHEN coalesce(k.is_template, o.is_template) THEN 'template' ELSE 'content' END AS token_kind,
       left(CASE a.kind WHEN 'snapshot' THEN m.content WHEN 'final' THEN p.generated_text WHEN 'reference' THEN array_to_string(e.messages ->> '$[*].content', ' · ')
                        WHEN 'example' THEN NULL ELSE p.prompt_text END, 300) AS text,
       s.last IS NOT NULL AND _has('activations', a.run_id) AS has_tokens,
       s.last IS NOT NULL AND _has('attention', a.run_id) AS has_attention
FROM _refs_of($refs) AS a
LEFT JOIN runs AS r ON r.run_id = a.run_id
LEFT JOIN there AS t ON t.place = a.place
LEFT JOIN seen AS s ON s.place = a.place
LEFT JOIN state_tokens AS k
  ON k.run_id = a.run_id AND k.state = a.kind AND k.prompt_id IS NOT DISTINCT FROM a.prompt
 AND CASE a.kind WHEN 'reference' THEN k.label = a.label WHEN 'initial' THEN true WHEN 'final' THEN true ELSE k.state_index = a.number END
LEFT JOIN tokens AS o ON o.run_id = a.run_id AND o.prompt_id = t.prompt_id AND o.position = t.position AND a.kind IN ('token', 'row')
LEFT JOIN messages AS m ON m.run_id = a.run_id AND m.prompt_id = a.prompt AND m.message_index = a.number AND a.kind = 'snapshot'
LEFT JOIN prompts AS p ON p.run_id = a.run_id AND p.prompt_id = coalesce(a.prompt, t.prompt_id)
LEFT JOIN reference_states AS e ON e.run_id = a.run_id AND e.label = a.label
ORDER BY a.place
