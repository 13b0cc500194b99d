"""Loads the SQL library into a catalog, and tells it where the lake is and which runs it has."""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from string import Template

from duckdb import DuckDBPyConnection as Connection

from warehouse.assets import query
from warehouse.catalog import sqldoc
from warehouse.lake.lake import Lake

#: Version of the catalog's layout; raised when an older alab must no longer open it.
FORMAT = 1


def load_library(db: Connection, lake: Lake, info: dict | None) -> None:
    """Replace all that alab itself keeps in the file; a user's own tables and macros stay."""
    for statement in json.loads(info["objects"]) if info else []:
        db.execute(statement)
    library = sqldoc.library()
    tables = [item for item in library if item.kind == "table"]
    for item in tables:
        db.execute(item.statement)
    load_index(db, lake)
    for item in library[len(tables) :]:  # they read tables and index
        db.execute(item.statement)
    for item in [*sqldoc.parse(sqldoc.template("index")), *library]:
        _comment(db, item)
    drops = [_drop(item) for item in reversed(library)]
    db.execute("DELETE FROM catalog_info")
    db.execute(
        "INSERT INTO catalog_info VALUES (?, ?, ?, ?, ?)",
        [FORMAT, version("alab"), sqldoc.digest(), lake.address, json.dumps(drops)],
    )


def load_index(db: Connection, lake: Lake) -> None:
    """Tell views and macros where the lake is, and which runs it has in which datasets."""
    runs = newest_first(db)
    ids = [run_id for run_id, _ in runs]
    runs_with = dict(db.execute(query("runs_with")).fetchall())
    if heads := lake.models():
        runs_with["models"] = f"|{'|'.join(heads)}|"
    keys = db.execute(query("kept_as")).fetchall()
    kept_as = {model: key for _, model, key in keys} | {run_id: key for run_id, _, key in keys}
    text = filled(
        sqldoc.template("index"),
        lake=glob_escaped(lake.address),
        latest_run=ids[0] if ids else None,
        latest_of={scenario: run_id for run_id, scenario in reversed(runs)},
        run_names=f"|{'|'.join(ids)}|" if ids else "",
        runs_with=runs_with,
        places=[os.path.normpath(lake.catalog), str(lake.catalog.resolve())],
        # One long string is found through fast; a map of thousands of entries took seconds to bind.
        kept_as="".join(f"|{name}|>{key}" for name, key in kept_as.items()) + "|",
    )
    if "=" in lake.address:  # `layer=3`, which DuckDB reads as a column
        text += sqldoc.template("index_by_name")
    if lake.remote:
        (files,) = db.execute(query("files_of")).fetchone() or ("",)
        text += filled(sqldoc.template("index_at_url"), files=files)
    for item in sqldoc.parse(text):
        db.execute(item.statement)
        _comment(db, item)


def newest_first(db: Connection) -> list[tuple[str, str]]:
    """Id and scenario of each run, the newest first."""
    rows = "SELECT run_id, scenario FROM runs ORDER BY created_at DESC, run_id DESC"
    return db.execute(rows).fetchall()


def filled(text: str, words: Mapping[str, str] | None = None, /, **values: object) -> str:
    """A statement with its `$name`s written in: what defines objects takes no parameters.

    Args:
        text: the statement, from a file of `sql/`.
        words: keywords and names of our own objects, which stand there as they are.
        values: None, strings, and lists or dicts of strings.
    """
    literals = {name: literal(value) for name, value in values.items()}
    return Template(text).substitute(words or {}, **literals)


def literal(value: object) -> str:
    """A SQL literal for None, a string, or a list or dict of strings."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]::VARCHAR[]"
    if isinstance(value, dict):
        return f"map({literal(list(value))}, {literal(list(value.values()))})"
    return "'" + str(value).replace("'", "''") + "'"


def glob_escaped(path: Path | str) -> str:
    """A path that means itself where DuckDB expects a pattern."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path))


#: What DuckDB calls each kind of object.
_KINDS = {"analysis": "MACRO TABLE", "macro": "MACRO", "view": "VIEW", "table": "TABLE"}


def _drop(item: sqldoc.SqlObject) -> str:
    return filled(query("drop"), {"kind": _KINDS[item.kind], "name": item.name})


def _comment(db: Connection, item: sqldoc.SqlObject) -> None:
    texts = {(_KINDS[item.kind], item.name): item.comment}
    if item.kind in ("table", "view"):
        texts |= {("COLUMN", f"{item.name}.{column}"): doc for column, doc in item.columns.items()}
    for (kind, name), text in texts.items():
        db.execute(filled(query("comment"), {"kind": kind, "name": name}, text=text))
