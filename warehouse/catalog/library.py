"""Loads the SQL library into a catalog, and tells it where the lake is and which runs it has."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from string import Template

import duckdb

from warehouse.catalog import sqldoc
from warehouse.lake.lake import Lake

#: Version of the catalog's layout; raised when an older alab must no longer open it.
FORMAT = 1


def load_library(db: duckdb.DuckDBPyConnection, lake: Lake, info: dict | None) -> None:
    """Replace everything that alab itself keeps in the file; a user's own tables and macros stay."""
    for statement in json.loads(info["objects"]) if info else []:
        db.execute(statement)
    library = sqldoc.library()
    db.execute(next(item for item in library if item.name == "catalog_info").statement)
    for item in library:
        if item.kind == "table":
            db.execute(item.statement)
    load_index(db, lake)
    for item in library:
        if item.kind != "table":
            db.execute(item.statement)
    for item in [*sqldoc.parse(sqldoc.index_template()), *library]:
        _comment(db, item)
    drops = [_drop(item) for item in reversed(library)]
    db.execute("DELETE FROM catalog_info")
    db.execute(
        "INSERT INTO catalog_info VALUES (?, ?, ?, ?, ?)",
        [FORMAT, version("alab"), sqldoc.digest(), str(lake.root), json.dumps(drops)],
    )


def load_index(db: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """Tell views and macros where the lake is, which runs it has, and of which datasets it has files of theirs."""
    runs = db.execute(
        "SELECT run_id, scenario FROM runs ORDER BY created_at DESC, run_id DESC"
    ).fetchall()
    ids, place = [run_id for run_id, _ in runs], lake.warehouse / lake.catalog.name
    runs_with = db.execute(
        "SELECT dataset, '|' || string_agg(DISTINCT run_id, '|' ORDER BY run_id) || '|' "
        "FROM files GROUP BY dataset ORDER BY dataset"
    ).fetchall()
    runs_with += [("models", f"|{'|'.join(heads)}|")] if (heads := lake.models()) else []
    known = (
        "SELECT run_id, model_id, coalesce(weights_hash, model_id) FROM runs "
        "WHERE NOT contains(model_id, '|') ORDER BY created_at, run_id"
    )
    models = db.execute(known).fetchall()
    kept_as = {model: kept for _, model, kept in models} | {
        run_id: kept for run_id, _, kept in models
    }
    text = Template(sqldoc.index_template()).substitute(
        lake=literal(glob_escaped(lake.root)),
        latest_run=literal(ids[0] if ids else None),
        latest_of=literal({scenario: run_id for run_id, scenario in reversed(runs)}),
        run_names=literal(f"|{'|'.join(ids)}|" if ids else ""),
        runs_with=literal(dict(runs_with)),
        places=literal([os.path.normpath(place), str(place.resolve())]),
        # One long string is found through fast; a map of thousands of entries took seconds to bind.
        kept_as=literal("".join(f"|{name}|>{kept}" for name, kept in kept_as.items()) + "|"),
    )
    for item in sqldoc.parse(text + sqldoc.readers_by_name() * _looks_partitioned(lake.root)):
        db.execute(item.statement)
        _comment(db, item)


def literal(value: object) -> str:
    """A SQL literal for None, a string, or a list or dict of strings."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]::VARCHAR[]"
    if isinstance(value, dict):
        return f"map({literal(list(value))}, {literal(list(value.values()))})"
    return "'" + str(value).replace("'", "''") + "'"


def glob_escaped(path: Path) -> str:
    """A path that means itself where DuckDB expects a pattern."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in str(path))


def _sql_kind(item: sqldoc.SqlObject) -> str:
    return {"analysis": "MACRO TABLE", "macro": "MACRO", "view": "VIEW", "table": "TABLE"}[
        item.kind
    ]


def _drop(item: sqldoc.SqlObject) -> str:
    return f"DROP {_sql_kind(item)} IF EXISTS {item.name}"


def _comment(db: duckdb.DuckDBPyConnection, item: sqldoc.SqlObject) -> None:
    db.execute(f"COMMENT ON {_sql_kind(item)} {item.name} IS {literal(item.comment)}")
    if item.kind in ("table", "view"):
        for column, doc in item.columns.items():
            db.execute(f"COMMENT ON COLUMN {item.name}.{column} IS {literal(doc)}")


def _looks_partitioned(path: Path) -> bool:
    """Whether a folder of the path is called like a partition, such as `layer=3`, which DuckDB reads as a column."""
    return any("=" in part for part in path.parts)
