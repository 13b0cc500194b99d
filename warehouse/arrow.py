"""Rows of DuckDB on their way to Arrow, which has fewer types: no value becomes another one."""

import re

import duckdb

#: Types whose values Arrow would have as bytes, as another number, or without a part.
_UNSPOKEN = r"BIT|BIGNUM|VARINT|VARIANT|UHUGEINT|GEOMETRY|TIME WITH TIME ZONE"
#: Types that Arrow has and Parquet has not.
UNWRITTEN = r"INTERVAL|UNION|STRUCT\(\)"
#: A value of JSON as words.
_OF_JSON = """CASE json_type({0})
    WHEN 'VARCHAR' THEN {0} ->> '$' WHEN 'NULL' THEN NULL ELSE {0}::VARCHAR END"""


def for_arrow(
    relation: duckdb.DuckDBPyRelation, more: str = "$^", *, words: bool = False
) -> duckdb.DuckDBPyRelation:
    """The rows, as text where Arrow has no word for them.

    Args:
        relation: the rows.
        more: names of other types that become text, as a regular expression.
        words: whether a text in JSON is that text, without the quotes that JSON writes.
    """
    names = re.compile(rf"\b({_UNSPOKEN}|{more})")
    columns = []
    for n, (name, kind) in enumerate(zip(relation.columns, relation.types, strict=True), 1):
        value = _OF_JSON.format(f"#{n}") if words and str(kind) == "JSON" else f"#{n}"
        value += "::VARCHAR" * bool(names.search(str(kind)))
        columns.append(f'{value} AS "{name.replace(chr(34), 2 * chr(34))}"')
    return relation.project(", ".join(columns))
