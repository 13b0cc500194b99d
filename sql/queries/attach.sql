-- Another catalog beside the one that is open. ATTACH takes no parameters before DuckDB 2.0: the path is written in.
ATTACH $path AS lake (READ_ONLY);
