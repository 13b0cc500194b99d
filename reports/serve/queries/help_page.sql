-- What there is to ask, for the list beside the editor.
SELECT kind, name, arguments, summary, documentation FROM help WHERE NOT starts_with(name, '_') ORDER BY kind, name
