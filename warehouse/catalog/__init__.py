"""The catalog: a DuckDB file that is a function of the lake and the SQL library, of nothing else.

It opens and synchronises the file, loads `sql/`, finds runs by name, checks and removes them. It
never runs a model, and whatever is in it can be thrown away.
"""
