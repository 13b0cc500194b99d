"""Runs SQL against the warehouse and writes what comes back: as a table, CSV, JSON, Markdown or Parquet.

Rows are written as they arrive, so a result does not have to fit in memory. A query runs on a
thread that can write nothing but its spill folder and its output, where the system is one that can
say so (`warehouse.query.landlock`).
"""

import errno
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import duckdb
from filelock import FileLock

from warehouse.atomic import writing
from warehouse.catalog import catalog
from warehouse.errors import AlabError, first_line
from warehouse.lake.lake import Lake
from warehouse.query import hints, landlock, readonly
from warehouse.query.formats import FORMATS, TABLE_ROWS

_NO_ROWS = "the query has no statement that gives rows"
LIST = "SELECT kind, name, arguments, summary FROM help WHERE NOT starts_with(name, '_')"
DESCRIBE = "SELECT kind, name, arguments, documentation FROM help WHERE lower(name) = lower(?)"


class _NoRowsError(Exception):
    """What ends a query without rows before anything of its output is there."""


def run(
    lake: Lake,
    sql: str,
    fmt: str | None = None,
    output: Path | None = None,
    parameters: dict[str, Any] | None = None,
) -> list[str]:
    """Run a query and write its rows.

    Args:
        lake: the warehouse's lake.
        sql: one or more statements; the rows of the last one are written.
        fmt: table, csv, json, jsonl, md or parquet; None goes by the output's suffix, else a table
            on a terminal and CSV anywhere else.
        output: file to write; None is standard output.
        parameters: values for `$name` in the query.

    Returns:
        Hints for the reader, such as a run id in the query that does not exist.

    Raises:
        AlabError: the query does not run, or writes, or the output cannot be written.
    """
    suffix = output.suffix.removeprefix(".") if output else ""
    usual = "table" if output is None and sys.stdout.isatty() else "csv"
    fmt = fmt or (suffix if suffix in (*FORMATS, "parquet") else usual)
    if fmt == "parquet" and output is None and sys.stdout.isatty():
        raise AlabError("Parquet is not for a terminal", "Name a file: -o FILE", 2)
    sql.encode()  # DuckDB takes no other text
    readonly.refuse(sql)
    try:
        with _spill_folder(lake) as spill:
            if fmt != "parquet":
                with _beside(lake, [spill], None) as (db, beside):
                    return _write_text(db, beside, sql, fmt, output, parameters)
            with (
                _file(output, spill) as path,
                _beside(lake, [spill, path.parent], path) as (db, beside),
            ):
                return _write_parquet(db, beside, sql, path, parameters)
    except _NoRowsError:
        return [_NO_ROWS]


def _write_text(
    db: duckdb.DuckDBPyConnection,
    beside: Callable,
    sql: str,
    fmt: str,
    output: Path | None,
    parameters: dict[str, Any] | None,
) -> list[str]:
    cursor = beside(db.execute, sql, parameters)
    if cursor is None or cursor.description is None:
        raise _NoRowsError
    first = beside(cursor.fetchmany, TABLE_ROWS + 1)
    rest = chain.from_iterable(iter(lambda: beside(cursor.fetchmany, 1024), []))
    with _stream(output) as stream:
        FORMATS[fmt]([column[0] for column in cursor.description], chain(first, rest), stream)
    return beside(hints.about, db, sql, empty=not first)


def _write_parquet(
    db: duckdb.DuckDBPyConnection,
    beside: Callable,
    sql: str,
    path: Path,
    parameters: dict[str, Any] | None,
) -> list[str]:
    def write() -> None:
        relation = db.sql(sql, params=parameters)
        if relation is None:
            raise _NoRowsError
        try:
            relation.write_parquet(str(path), compression="zstd")
        finally:
            relation = None  # here, and not on another thread when the exception is done with

    beside(write)
    return beside(hints.about, db, sql, empty=False)


@contextmanager
def _beside(
    lake: Lake, writable: list[Path], output: Path | None
) -> Iterator[tuple[duckdb.DuckDBPyConnection, Callable]]:
    """The catalog, open on another thread that may write to some folders only, and what calls on that thread.

    On Python's main thread signals wait for DuckDB, for minutes. DuckDB's own threads are children
    of the one that opens the file, and are bound as it is. Whatever DuckDB does after a query, such
    as ending a log that the query asked for, it does on the thread that calls it: so everything is
        called there.
    """
    opened: list[duckdb.DuckDBPyConnection] = []

    def call(work: Callable, *arguments: object, **options: object) -> Any:
        answer = pool.submit(work, *arguments, **options)
        try:
            return answer.result()
        except KeyboardInterrupt:
            for db in opened:
                db.interrupt()
            raise

    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        call(landlock.restrict, writable)
        db = stack.enter_context(catalog.connect(lake, on=call))
        opened.append(db)
        call(db.execute, "SET temp_directory = ?", [str(writable[0])])
        stack.enter_context(hints.explained(lake, db, call, output))
        yield db, call


@contextmanager
def _spill_folder(lake: Lake) -> Iterator[Path]:
    """A folder for what does not fit in memory, on the lake's disk where that can be written.

    It lies among the runs that are being written, so that the next command sweeps what a killed one
    left.
    """
    if not os.access(lake.staging, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="alab-") as folder:
            yield Path(folder)
        return
    folder = lake.staging / f"query-{uuid.uuid4().hex}"
    lock = FileLock(f"{folder}.lock")
    with lock:
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def describe(lake: Lake, name: str) -> str:
    """The whole documentation of one object of the catalog, as text.

    Raises:
        AlabError: there is no such object; the message names the closest ones.
    """
    with catalog.connect(lake) as db:
        row = db.execute(DESCRIBE, [name]).fetchone()
        if row is None:
            raise AlabError(f"there is nothing called {name!r}", hints.suggestion(db, name))
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
def _file(output: Path | None, spill: Path) -> Iterator[Path]:
    """Where a file of bytes is written, in a folder of its own; it goes to its place when it is whole."""
    if output is None:
        path = spill / "rows"
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        return
    with writing(output, "-o") as draft, ExitStack() as stack:
        folder = spill
        if not (is_special := draft.exists()):  # a device or a pipe has no folder for files of ours
            folder = Path(stack.enter_context(_folder_beside(draft)))
        path = folder / "rows"
        try:
            yield path
        except duckdb.IOException as error:
            if str(path) not in str(error):
                raise
            raise OSError(errno.EIO, first_line(error), str(draft)) from error
        if is_special:
            with path.open("rb") as file, draft.open("wb") as target:
                shutil.copyfileobj(file, target)
        else:
            path.replace(draft)


def _folder_beside(draft: Path) -> tempfile.TemporaryDirectory:
    """A folder for what becomes a file, on its disk; where there can be none, the file is what cannot be written."""
    try:
        return tempfile.TemporaryDirectory(dir=draft.parent, prefix=".alab-")
    except OSError as error:
        error.filename = str(draft)
        raise
