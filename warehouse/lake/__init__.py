"""The lake: Parquet files that say what was measured, and the rules by which they appear.

It knows schemas, pages, part files, staging, publishing by rename and reading tensors back. It
imports neither torch nor duckdb, and knows nothing of models.
"""
