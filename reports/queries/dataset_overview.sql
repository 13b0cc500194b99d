-- What each dataset run is of, and how its prompts were made.
SELECT o.*, json_extract_string(r.scenario_json, '$.prompt[0].dataset.query') AS query,
       json_extract_string(r.scenario_json, '$.prompt[0].dataset.id') AS id_column,
       json_extract_string(r.scenario_json, '$.prompt[0].dataset.text') AS template,
       json_extract_string(r.scenario_json, '$.prompt[0].dataset.messages') AS messages
FROM dataset_overview($runs) AS o JOIN runs AS r ON r.run_id = o.run_id
ORDER BY r.created_at, o.run_id
