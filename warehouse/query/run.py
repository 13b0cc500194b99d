"""Asks the warehouse in SQL, and gives columns and rows, or has DuckDB write a Parquet file.

Rows are given as they arrive, so a result does not have to fit in memory. A query runs on a thread
that can write nothing but its spill folder and its output, where the system is one that can say so
(`warehouse.query.landlock`).
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from duckdb import DuckDBPyConnection as Connection
from filelock import FileLock

from warehouse.catalog.catalog import connect
from warehouse.errors import AlabError, first_line
from warehouse.lake.lake import Lake
from warehouse.query import hints, landlock, readonly
from warehouse.query.formats import TABLE_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

LIST = "SELECT kind, name, arguments, summary FROM help WHERE NOT starts_with(name, '_')"
_HELP = "SELECT kind, name, arguments, documentation FROM help WHERE lower(name) = lower(?)"


class NoRowsError(AlabError):
    """None of a query's statements gives rows."""

    def __init__(self) -> None:
        super().__init__("the query has no statement that gives rows")


@dataclass
class Result:
    """What a query gives.

    Attributes:
        columns: names of the columns.
        rows: the rows, as they arrive.
        hints: asks, when the rows are done with, why some may be missing: a run id in the query
            that does not exist, for instance.
    """

    columns: list[str]
    rows: Iterator[tuple]
    hints: Callable[[], list[str]]


@contextmanager
def ask(lake: Lake, sql: str, params: Mapping[str, Any] | None = None) -> Iterator[Result]:
    """Run a query, and give its result while the catalog is open.

    Args:
        lake: the warehouse's lake.
        sql: one or more statements; the rows are those of the last one.
        params: values of `$name` in the query.

    Raises:
        NoRowsError: no statement gives rows.
        AlabError: the query does not run, or writes.
    """
    readonly.refuse(sql)
    with scratch(lake) as spill, _bound(lake, [spill]) as (db, call):
        cursor = call(db.execute, sql, params)
        if cursor is None or cursor.description is None:
            raise NoRowsError
        first = call(cursor.fetchmany, TABLE_ROWS + 1)
        rest = chain.from_iterable(iter(lambda: call(cursor.fetchmany, 1024), []))
        yield Result(
            [column[0] for column in cursor.description],
            chain(first, rest),
            lambda: call(hints.about, db, sql, empty=not first),
        )


@contextmanager
def asking(lake: Lake) -> Iterator[Callable[[str, Mapping[str, Any]], "pa.Table"]]:
    """Open the catalog for many queries, each bound as one of `ask`; gives what runs them.

    Raises:
        AlabError: there is no warehouse; of a query, that it writes.
        NoRowsError: of a query, that no statement of it gives rows.
    """
    with scratch(lake) as spill, _bound(lake, [spill]) as (db, call):

        def rows(sql: str, params: Mapping[str, Any]) -> "pa.Table":
            readonly.refuse(sql)
            relation: Any = db.sql(sql, params=params)
            if relation is None:
                raise NoRowsError
            try:
                return relation.to_arrow_table()
            finally:
                relation = None  # here, as in `save`

        def told(sql: str, params: Mapping[str, Any]) -> "pa.Table":
            with hints.explained(lake, db, call):
                return call(rows, sql, params)

        yield told


def rows_of(table: "pa.Table") -> Iterator[tuple]:
    """The rows of a table that `asking` gave, with the values that `ask` gives."""
    import pyarrow as pa

    huge = pa.decimal128(38, 0)  # what a HUGEINT, such as a sum, becomes in Arrow
    columns = [f"#{n}{'::HUGEINT' * (f.type == huge)}" for n, f in enumerate(table.schema, 1)]
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        for batch in table.to_batches(max_chunksize=1 << 14):
            some = db.from_arrow(pa.Table.from_batches([batch]))
            yield from some.project(", ".join(columns)).fetchall()


def save(lake: Lake, sql: str, path: Path, params: Mapping[str, Any] | None = None) -> list[str]:
    """Run a query as `ask` does, and have DuckDB write its rows to a Parquet file.

    The file is in a folder of its own: the query may write anything there.

    Returns:
        Hints, as `Result.hints` gives them.

    Raises:
        OSError: the file cannot be written.
    """
    readonly.refuse(sql)

    def write() -> None:
        relation: Any = db.sql(sql, params=params)
        if relation is None:
            raise NoRowsError
        try:
            relation.write_parquet(str(path), compression="zstd")
        except duckdb.IOException as error:
            if str(path) not in str(error):
                raise
            raise OSError(errno.EIO, first_line(error)) from error
        finally:
            relation = None  # here, and not on another thread when the exception is done with

    with scratch(lake) as spill, _bound(lake, [spill, path.parent]) as (db, call):
        call(write)
        return call(hints.about, db, sql, empty=False)


@contextmanager
def _bound(lake: Lake, writable: list[Path]) -> Iterator[tuple[Connection, Callable]]:
    """The catalog, open on a thread that may write to some folders only, and what calls there.

    On Python's main thread signals wait for DuckDB, for minutes. DuckDB's own threads are children
    of the one that opens the file, and are bound as it is. Whatever DuckDB does after a query, such
    as ending a log that the query asked for, it does on the thread that calls it: so everything is
    called there.
    """
    opened: list[Connection] = []

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
        db = stack.enter_context(connect(lake, on=call))
        opened.append(db)
        call(db.execute, "SET temp_directory = ?", [str(writable[0])])
        stack.enter_context(hints.explained(lake, db, call))
        yield db, call


@contextmanager
def scratch(lake: Lake) -> Iterator[Path]:
    """A folder for what does not fit in memory, on the lake's disk where that can be written.

    It lies among the runs that are being written, so that the next command sweeps what a killed one
    left.
    """
    if not os.access(lake.staging, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="alab-") as temporary:
            yield Path(temporary)
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


def documentation(lake: Lake, name: str) -> str:
    """The whole documentation of one object of the catalog, as text.

    Raises:
        AlabError: there is no such object; the message names the closest ones.
    """
    with connect(lake) as db:
        row = db.execute(_HELP, [name]).fetchone()
        if row is None:
            raise AlabError(f"there is nothing called {name!r}", hints.suggestion(db, name))
    kind, name, arguments, text = row
    usage = f"{name}({arguments})" if kind in ("macro", "analysis") else name
    return f"{usage}  [{kind}]\n\n{text or 'no documentation'}"
