-- The columns of a dataset, with their kinds and how many values they have.
FROM label_columns($run)
