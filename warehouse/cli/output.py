"""Where the rows of a query go: standard output or a file, as text or as Parquet."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import click

from warehouse.atomic import writing
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.query import run as query
from warehouse.query.formats import FORMATS

if TYPE_CHECKING:
    import pyarrow as pa


def show(
    lake: Lake,
    sql: str,
    params: Mapping[str, Any] | None = None,
    *,
    fmt: str | None = None,
    output: Path | None = None,
) -> None:
    """Print what a query gives, or write it to a file, and hints on standard error.

    Without a format the output's suffix decides, else it is a table on a terminal and CSV anywhere
    else.

    Raises:
        AlabError: the query does not run, or writes, or the output cannot be written.
    """
    suffix = output.suffix.lower().removeprefix(".") if output else ""
    usual = "table" if output is None and sys.stdout.isatty() else "csv"
    fmt = fmt or (suffix if suffix in (*FORMATS, "parquet") else usual)
    if fmt == "parquet" and output is None and sys.stdout.isatty():
        raise AlabError("Parquet is not for a terminal", "Name a file: -o FILE", 2)
    try:
        if fmt == "parquet":
            with _file(lake, output) as path:
                hints = query.save(lake, sql, path, params)
        else:
            with query.ask(lake, sql, params) as result:
                with _stream(output) as stream:
                    FORMATS[fmt](result.columns, result.rows, stream)
                hints = result.hints()
    except query.NoRowsError as error:
        hints = [error.message]
    for hint in hints:
        click.echo(f"hint: {hint}", err=True)


def put(table: "pa.Table", *, fmt: str | None = None, output: Path | None = None) -> None:
    """Print a table that no query gave, or write it to a file, as Parquet where that is its name.

    Raises:
        AlabError: the file cannot be written.
    """
    suffix = output.suffix.lower().removeprefix(".") if output else ""
    if output and fmt is None and suffix == "parquet":
        from pyarrow import parquet

        with writing(output, "-o") as draft:
            parquet.write_table(table, draft, compression="zstd")
        return
    usual = "table" if output is None and sys.stdout.isatty() else "csv"
    with _stream(output) as stream:
        FORMATS[fmt or (suffix if suffix in FORMATS else usual)](
            table.column_names, query.rows_of(table), stream
        )


def write(columns: list[str], rows: list[tuple], *, fmt: str | None = None) -> None:
    """Print rows that no query gave."""
    FORMATS[fmt or ("table" if sys.stdout.isatty() else "csv")](columns, rows, sys.stdout)


@contextmanager
def _stream(output: Path | None) -> Iterator[TextIO]:
    """Where text goes."""
    if output is None:
        yield sys.stdout
        return
    with writing(output, "-o") as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        yield stream


@contextmanager
def _file(lake: Lake, output: Path | None) -> Iterator[Path]:
    """Where DuckDB writes a file, in a folder of its own; it goes to its place when it is whole."""
    if output is None:
        with query.scratch(lake) as folder:
            yield (path := folder / "rows")
            _copy(path, sys.stdout.buffer)
        return
    with writing(output, "-o") as draft:
        if draft.exists():  # a device or a pipe has no folder for files of ours
            with query.scratch(lake) as folder:
                yield (path := folder / "rows")
                with draft.open("wb") as target:
                    _copy(path, target)
        else:
            with _folder_beside(draft) as name:
                yield (path := Path(name) / "rows")
                path.replace(draft)


def _copy(path: Path, target: BinaryIO) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, target)


def _folder_beside(draft: Path) -> tempfile.TemporaryDirectory:
    """A folder on the disk of what becomes a file; without one that file cannot be written."""
    try:
        return tempfile.TemporaryDirectory(dir=draft.parent, prefix=".alab-")
    except OSError as error:
        error.filename = str(draft)
        raise
