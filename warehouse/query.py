"""Runs SQL against the warehouse and writes what comes back: as a table, CSV, JSON, Markdown or Parquet.

Rows are written as they arrive, so a result does not have to fit in memory.
"""

import csv
import datetime
import difflib
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TextIO

import duckdb

from warehouse import catalog, sqldoc
from warehouse.errors import AlabError
from warehouse.lake import Lake
from warehouse.whole import writing

#: Rows that a table shows; the other formats have all of them.
TABLE_ROWS = 100
#: Values of a list that a table shows, and characters of a text.
LIST_VALUES, CELL_WIDTH = 4, 60

_NO_ROWS = "the query has no statement that gives rows"
LIST = "SELECT kind, name, arguments, summary FROM help WHERE NOT starts_with(name, '_')"
DESCRIBE = "SELECT kind, name, arguments, documentation FROM help WHERE lower(name) = lower(?)"

_LITERAL = r"'((?:[^']|'')*)'"
_CALL = re.compile(r"\b(\w+)\s*\(((?:[^()']|'(?:[^']|'')*')*)\)")
#: An argument of a call: a list, or whatever is there up to the next comma.
_ARGUMENT = re.compile(r"(?:\[(?:[^\]']|'(?:[^']|'')*')*\]|[^,'\[]|'(?:[^']|'')*')+")
_FILTER = re.compile(rf"\b(run_id|site)\s*(?:=|<>|!=|in\s*\()\s*{_LITERAL}", re.IGNORECASE)


def run(lake: Lake, sql: str, fmt: str | None = None, output: Path | None = None) -> list[str]:
    """Run a query and write its rows.

    Args:
        lake: the warehouse's lake.
        sql: one or more statements; the rows of the last one are written.
        fmt: table, csv, json, jsonl, md or parquet; None goes by the output's suffix, else a table on a
            terminal and CSV anywhere else.
        output: file to write; None is standard output.

    Returns:
        Hints for the reader, such as a run id in the query that does not exist.

    Raises:
        AlabError: the query does not run, or the output cannot be written.
    """
    suffix = output.suffix.removeprefix(".") if output else ""
    usual = "table" if output is None and sys.stdout.isatty() else "csv"
    fmt = fmt or (suffix if suffix in (*FORMATS, "parquet") else usual)
    if fmt == "parquet" and output is None and sys.stdout.isatty():
        raise AlabError("Parquet is not for a terminal", "Name a file: -o FILE", 2)
    sql.encode()  # DuckDB takes no other text
    with catalog.connect(lake) as db, _explained(lake, db), _beside(db) as beside:
        if fmt == "parquet":
            if (relation := beside(db.sql, sql)) is None:
                return [_NO_ROWS]
            with _file(output) as path:
                beside(relation.write_parquet, str(path), compression="zstd")
            return []
        cursor = beside(db.execute, sql)
        if cursor is None or cursor.description is None:
            return [_NO_ROWS]
        first = beside(cursor.fetchmany, TABLE_ROWS + 1)
        rest = chain.from_iterable(iter(lambda: beside(cursor.fetchmany, 1024), []))
        with _stream(output) as stream:
            FORMATS[fmt]([column[0] for column in cursor.description], chain(first, rest), stream)
        return _hints(db, sql, empty=not first)


@contextmanager
def _beside(db: duckdb.DuckDBPyConnection) -> Iterator[Callable]:
    """Let DuckDB work on another thread: on Python's main thread signals wait for it, for minutes."""

    def call(work: Callable, *arguments: object, **options: object) -> Any:
        answer = pool.submit(work, *arguments, **options)
        try:
            return answer.result()
        except KeyboardInterrupt:
            db.interrupt()
            raise

    with ThreadPoolExecutor(1) as pool:
        yield call


def describe(lake: Lake, name: str) -> str:
    """The whole documentation of one object of the catalog, as text.

    Raises:
        AlabError: there is no such object; the message names the closest ones.
    """
    with catalog.connect(lake) as db:
        row = db.execute(DESCRIBE, [name]).fetchone()
        if row is None:
            raise AlabError(f"there is nothing called {name!r}", _suggestion(db, name))
    kind, name, arguments, documentation = row
    call = f"{name}({arguments})" if kind in ("macro", "analysis") else name
    return f"{call}  [{kind}]\n\n{documentation or 'no documentation'}"


@contextmanager
def _stream(output: Path | None) -> Iterator[TextIO]:
    """Where text goes."""
    if output is None:
        yield sys.stdout
        return
    with writing(output, "-o") as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        yield stream


@contextmanager
def _file(output: Path | None) -> Iterator[Path]:
    """Where a file of bytes goes; to standard output when it is whole."""
    if output is not None:
        with writing(output, "-o") as draft:
            yield draft
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)


@contextmanager
def _explained(lake: Lake, db: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Turn DuckDB's errors into one line of what is wrong and one of what to do next."""
    try:
        yield
    except duckdb.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        line = next((line for line in lines if line.startswith("LINE ")), "")
        damaged = type(error) is duckdb.Error or str(lake.root) in lines[0]  # told of a file, not of the query
        hint = "What of the warehouse is damaged: alab check" if damaged else _next_move(db, lines)
        raise AlabError(" ".join(filter(None, [lines[0], line and f"({line})"])), hint) from error


def _next_move(db: duckdb.DuckDBPyConnection, lines: list[str]) -> str:
    unknown = re.search(r"(?:Function|Table|View) with name \"?([\w.]+)\"? does not exist", lines[0])
    if unknown:
        return _suggestion(db, unknown[1])
    if "read-only" in lines[0]:
        return "alab sql only reads. To keep tables or views of your own, open alab.duckdb in the DuckDB shell."
    if "pytz" in lines[0] or "pytz" in lines[-1]:
        return "Cast times with a zone, `…::TIMESTAMP`, or: pip install pytz"
    at = next((i for i, line in enumerate(lines) if line.startswith(("Candidate", "Did you mean"))), 0)
    if at:
        return " ".join(lines[at : at + 2] if lines[at].endswith(":") else lines[at : at + 1])
    return "What there is: alab sql --list; how one is used: alab sql --describe NAME"


def _suggestion(db: duckdb.DuckDBPyConnection, name: str) -> str:
    names = [row[0] for row in db.execute("SELECT name FROM help").fetchall()]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    return (f"Did you mean {' or '.join(close)}? " if close else "") + "See them all: alab sql --list"


def _hints(db: duckdb.DuckDBPyConnection, sql: str, empty: bool) -> list[str]:
    """Why rows may be missing: damaged runs, and run ids and sites in the query that do not exist."""
    hints = [f"the metadata of {run_id} is damaged, it is left out: alab check" for run_id in catalog.damaged(db)]
    runs = [row[0] for row in db.execute("SELECT run_id FROM runs ORDER BY created_at DESC, run_id DESC").fetchall()]
    sites = [row[0] for row in db.execute("SELECT DISTINCT site FROM sites ORDER BY site").fetchall()]
    if not runs:
        return hints + ["the warehouse has no runs yet; capture one: alab capture SCENARIO"] * empty
    for kind, value in dict.fromkeys(_literals(sql)):
        if kind == "run_id" and value not in (*runs, "latest"):
            longer = [run_id for run_id in runs if value and run_id.startswith(value)]
            hints.append(f"there is no run {value!r}; the newest are: {', '.join((longer or runs)[:5])}")
        if kind == "site" and sites and value not in (*sites, "mlp_act"):
            hints.append(f"there is no site {value!r}; the sites are: {', '.join(sites)}")
    return hints


def _literals(sql: str) -> Iterator[tuple[str, str]]:
    """Run ids and sites that a query spells out, as (`run_id` or `site`, value)."""
    yield from ((kind.lower(), value.replace("''", "'")) for kind, value in _FILTER.findall(sql))
    arguments = {item.name: item.arguments for item in sqldoc.library() if item.kind == "analysis"}
    for name, inside in _CALL.findall(sql):
        for position, part in zip(arguments.get(name.lower(), []), _ARGUMENT.findall(inside), strict=False):
            named = re.fullmatch(rf"\s*(?:(\w+)\s*:?=>?\s*)?({_LITERAL}|\[.*\])\s*", part, re.DOTALL)
            if named:
                argument = (named[1] or position).lower()
                kind = "run_id" if argument.startswith("run") else argument
                yield from ((kind, value.replace("''", "'")) for value in re.findall(_LITERAL, named[2]))


def _csv(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([json.dumps(plain(value)) if isinstance(value, list | dict) else value for value in row])


def _json(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    names, separator = _distinct(names), "[\n"
    for row in rows:
        stream.write(separator + _record(names, row))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def _jsonl(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    names = _distinct(names)
    for row in rows:
        stream.write(_record(names, row) + "\n")


def _distinct(names: list[str]) -> list[str]:
    """Column names as keys of an object.

    >>> _distinct(["a", "b", "a"])
    ['a', 'b', 'a_1']
    """
    keys: list[str] = []
    for name in names:
        tries = chain([name], (f"{name}_{number}" for number in count(1)))
        keys.append(next(key for key in tries if key not in keys))
    return keys


def _record(names: list[str], row: tuple) -> str:
    return json.dumps(dict(zip(names, map(plain, row), strict=True)), ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN and infinity are null, dates are ISO 8601, anything unknown is text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def _markdown(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    stream.write(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n")
    for row in rows:
        cells = [cell(value, width=None).replace("|", "\\|") for value in row]
        stream.write(f"| {' | '.join(cells)} |\n")


def _table(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    first = list(islice(rows, TABLE_ROWS + 1))
    shown = [[cell(value) for value in row] for row in first[:TABLE_ROWS]]
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
    right = [all(isinstance(row[i], int | float | None) for row in first) for i in range(len(names))]
    for cells in chain([names, ["─" * width for width in widths]], shown):
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        stream.write("  ".join(padded).rstrip() + "\n")
    if len(first) > TABLE_ROWS:
        stream.write(f"… the first {TABLE_ROWS} rows; all of them: --format csv\n")


def cell(value: Any, width: int | None = CELL_WIDTH) -> str:
    """A value on one short line; of a long list the first values and how many there are."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        dots = [f"… {len(value)} values"] if len(value) > LIST_VALUES + 2 else []
        return f"[{', '.join([cell(item) for item in (value[:LIST_VALUES] if dots else value)] + dots)}]"
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


#: What writes each format: column names, rows, and the stream that they go to.
FORMATS: dict[str, Callable[[list[str], Iterable[tuple], TextIO], None]] = {
    "table": _table, "csv": _csv, "json": _json, "jsonl": _jsonl, "md": _markdown,
}  # fmt: skip
