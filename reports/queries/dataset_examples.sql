-- Some rows of a dataset, evenly spread over it, with the beginning of their text.
SELECT p.prompt_id, p.row_id, p.n_prompt_tokens, p.n_generated, p.prompt_text[:$letters] AS prompt_text,
       length(p.prompt_text) AS letters, p.generated_text[:$letters] AS generated_text, f.fields
FROM (FROM prompts WHERE run_id = $run
      QUALIFY (row_number() OVER (ORDER BY prompt_id) - 1) % ceil(count(*) OVER () / $examples) = 0) AS p
LEFT JOIN _label_fields($run) AS f USING (run_id, prompt_id)
ORDER BY p.prompt_id
