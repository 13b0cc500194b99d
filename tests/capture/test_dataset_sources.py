"""Rows of sources that differ from file to file, and values that Arrow, JSON or Python has no word for."""

import json
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_dataset import dataset, refusal, request

from warehouse.capture.dataset import Dataset
from warehouse.errors import AlabError


def texts(read: Dataset) -> list[str]:
    return [filled.texts[0] if filled.texts else filled.error for filled in read.prompts()]


def of_files(tmp_path, kind: str, files: list, **keys) -> Dataset:
    """A dataset of several files, given as text, or as tables for Parquet."""
    for n, content in enumerate(files):
        path = tmp_path / f"part{n}.{kind}"
        pq.write_table(pa.table(content), path) if kind == "parquet" else path.write_text(content)
    return Dataset(request(source=str(tmp_path / f"part*.{kind}"), **keys))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_columns_of_several_files_go_by_their_names(tmp_path, kind):
    tables = [{"name": ["Ann"], "town": ["Oslo"]}, {"town": ["Rome"], "name": ["Bob"], "more": [1]}]
    between = {"csv": ",", "tsv": "\t"}.get(kind)
    if between:
        files = ["\n".join(between.join(map(str, row)) for row in [t.keys(), next(zip(*t.values(), strict=True))]) for t in tables]  # fmt: skip
    elif kind == "jsonl":
        files = [json.dumps({key: one for key, (one,) in t.items()}) for t in tables]
    else:
        files = tables
    read = of_files(tmp_path, kind, files)
    assert texts(read) == ["Ann of Oslo", "Bob of Rome"]
    assert read.labels["more"].to_pylist() == [None, 1]


def test_types_of_several_files_widen(tmp_path):
    read = of_files(tmp_path, "parquet", [{"a": [1]}, {"a": [2.5]}], text="{{ a }}")
    assert read.labels["a"].to_pylist() == [1.0, 2.5]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_type_is_that_of_every_row(tmp_path, kind):
    """DuckDB looks at the first 20,480 rows, as is usual."""
    path = tmp_path / f"rows.{kind}"
    values = [*map(str, range(21_000)), "word"]
    lines = ["a", *values] if kind == "csv" else [json.dumps({"a": v}) for v in [*range(21_000), "word"]]  # fmt: skip
    path.write_text("\n".join(lines))
    read = Dataset(request(source=str(path), text="{{ a }}"))
    assert read.labels["a"].to_pylist() == values


def test_json_that_mixes_words_and_numbers_is_text_without_quotes(tmp_path):
    rows = [{"a": "ann"}, {"a": 5}, {"a": 'say "hi"\n'}, {"a": True}]
    read = of_files(tmp_path, "jsonl", ["\n".join(map(json.dumps, rows))], text="<{{ a }}>")
    assert texts(read) == ["<ann>", "<5>", '<say "hi"\n>', "<true>"]
    assert read.labels["a"].to_pylist() == ["ann", "5", 'say "hi"\n', "true"]


@pytest.mark.parametrize("name", ["range", "dict", "lipsum", "namespace", "joiner", "cycler"])
def test_a_column_is_not_what_jinja_calls_so(name):
    read = dataset(pa.table({name: ["low", "high"]}), text=f"It is {{{{ {name} }}}}.")
    assert texts(read) == ["It is low.", "It is high."] and read.fields == {name}
    loop = "{% for n in range(2) %}{{ a }}{% endfor %}"
    assert texts(dataset(pa.table({"a": ["x"]}), text=loop)) == ["xx"]


@pytest.mark.parametrize(
    ("sql", "stored"),
    [
        ("'0101'::BIT", "0101"),
        ("123456789012345678901234567890123::BIGNUM", "123456789012345678901234567890123"),
        ("340282366920938463463374607431768211455::UHUGEINT", str(2**128 - 1)),
        ("TIMETZ '12:00:00+02'", "12:00:00+02"),
        ("'{\"a\": [1]}'::JSON -> 'a'", "[1]"),
        ("'\"x\"'::JSON", "x"),
        (
            "12345678901234567890123456789012345678::HUGEINT",
            Decimal("12345678901234567890123456789012345678"),
        ),
        ("1.5::DECIMAL(9, 2)", Decimal("1.50")),
    ],
)
def test_no_value_becomes_another(sql, stored):
    read = dataset(pa.table({"a": [1]}), query=f"select {sql} as x from source", text="{{ x }}")
    assert read.labels["x"].to_pylist() == [stored] and texts(read) == [str(stored)]


@pytest.mark.parametrize("sql", ["date '12026-01-01'", "timestamp '12026-01-01'", "'infinity'::timestamp"])  # fmt: skip
def test_times_beyond_python(sql):
    query = f"select {sql} as x, 1 as a from source"
    table = pa.table({"a": [1]})
    assert len(dataset(table, query=query, text="{{ a }}").labels) == 1
    (said,) = texts(dataset(table, query=query, text="{{ x }}"))
    assert "a field has no value" in said or "12026" in said or "9999" in said
    read = refusal(table, query=query, text="{{ a }}", id="x") if "timestamp" in sql else "id: x"
    assert "id: x" in read


def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"name,town\nAnn,Oslo\nB\xe4rbel,Rome\n")
    with pytest.raises(AlabError) as error:
        Dataset(request(source=str(path)))
    said = str(error.value)
    assert "cannot read" in said and "Line: 3" in said and "utf-8" in said.lower()


def test_the_types_that_are_named_are_duckdbs():
    """A release of DuckDB may call one otherwise, which would then be stored as bytes."""
    names = {name for (name,) in duckdb.sql("select type_name from duckdb_types()").fetchall()}
    for kind in ("bit", "bignum", "uhugeint", "time with time zone", "interval", "variant"):
        assert kind in names
