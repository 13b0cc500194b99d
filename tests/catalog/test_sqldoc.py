"""The comment grammar, the load order and the page."""

import re

import duckdb
import pytest

from warehouse.assets import query
from warehouse.catalog import sqldoc
from warehouse.catalog.catalog import table_names

TEXT = """
-- Doubles a number.
--
-- More about it.
-- @param x a number; the line
--   goes on
-- @returns DOUBLE
-- @example select twice(2)
-- @example
-- select twice(3)
-- from t
CREATE OR REPLACE MACRO twice(x) AS x * 2;

-- Rows.
-- @param n how many; give it by name
-- @column i the number
CREATE OR REPLACE MACRO numbers(n := 3) AS TABLE
SELECT i -- a comment with; a semicolon
FROM range(n) AS t(i);

-- A table.
CREATE TABLE IF NOT EXISTS things (
  name VARCHAR,    -- its name
  list INTEGER[]   -- a list
);
"""


def test_the_parts_of_a_comment():
    twice, numbers, things = sqldoc.parse(TEXT, "f.sql")
    assert (twice.kind, twice.name, twice.signature) == ("macro", "twice", "twice(x)")
    assert twice.summary == "Doubles a number."
    assert twice.params == {"x": "a number; the line goes on"}
    assert twice.examples == ["select twice(2)", "select twice(3)\nfrom t"]
    assert (numbers.kind, numbers.signature, numbers.arguments) == (
        "analysis",
        "numbers(n := 3)",
        ["n"],
    )
    assert numbers.columns == {"i": "the number"}
    assert things.columns == {"name": "its name", "list": "a list"}
    assert twice.comment.startswith("Doubles a number.\n\nMore about it.\n\nargument x: a number")


@pytest.mark.parametrize(("text", "message"), [
    ("-- x\nCREATE MACRO a() AS 1", "no semicolon"),
    ("-- x\nDROP TABLE a;", "not a CREATE"),
])  # fmt: skip
def test_mistakes_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        sqldoc.parse(text, "f.sql")


def library(tmp_path, **files):
    (tmp_path / "index.sql").write_text("")
    (tmp_path / "index_by_name.sql").write_text("")
    (tmp_path / "index_at_url.sql").write_text("")
    (tmp_path / "macros").mkdir()
    for name, text in files.items():
        (tmp_path / "macros" / f"{name}.sql").write_text(text)
    return [item.name for item in sqldoc.library(tmp_path)]


def test_objects_load_after_those_they_use(tmp_path):
    assert library(
        tmp_path,
        a="-- A.\nCREATE MACRO a() AS b() + d();\n\n-- C.\nCREATE MACRO c() AS 1;",
        b="-- B.\nCREATE MACRO b() AS c();\n\n-- D.\nCREATE MACRO d() AS b();",
    ) == ["c", "b", "d", "a"]


def test_a_circle_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a → b → a call each other"):
        library(tmp_path, a="-- A.\nCREATE MACRO a() AS b();", b="-- B.\nCREATE MACRO b() AS a();")


def test_the_digest_follows_every_file(tmp_path):
    library(tmp_path, a="-- A.\nCREATE MACRO a() AS 1;")
    before = sqldoc.digest(tmp_path)
    (tmp_path / "macros" / "a.sql").write_text("-- A.\nCREATE MACRO a() AS 2;")
    assert sqldoc.digest(tmp_path) != before


def test_the_page_has_every_public_object():
    page = sqldoc.page()
    for item in sqldoc.library():
        assert (f"`{item.signature}`" in page) != item.name.startswith("_")


def test_no_table_is_missing_where_runs_come_and_go():
    with duckdb.connect() as db:
        copied = [s.named_parameters for s in db.extract_statements(query("register"))]
    emptied = re.findall(r"DELETE FROM (\w+)", query("forget"))
    assert sorted([*copied, {"files"}], key=min) == [{name} for name in sorted(table_names())]
    assert sorted(emptied) == sorted([*table_names(), "catalog_runs"])


def test_queries_of_python_are_no_part_of_the_library(tmp_path):
    library(tmp_path, a="-- A.\nCREATE MACRO a() AS 1;")
    before = sqldoc.digest(tmp_path)
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "b.sql").write_text("SELECT $b")
    assert sqldoc.digest(tmp_path) == before
    assert [item.name for item in sqldoc.library(tmp_path)] == ["a"]
