"""The catalog: a DuckDB file that is a function of the lake and the SQL library, and of nothing else.

Whatever is in it can be thrown away: `sync` registers the runs that the lake has and forgets those
    that it has
not, and a catalog of another version of the SQL library is filled anew.
"""

import copy
import functools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import duckdb

from warehouse.catalog import sqldoc
from warehouse.catalog.library import FORMAT, glob_escaped, load_index, load_library
from warehouse.errors import AlabError, first_line
from warehouse.lake.lake import Lake

if TYPE_CHECKING:
    import pyarrow as pa

#: The oldest DuckDB whose command line opens the catalog.
STORAGE = "v1.2.0"


#: What DuckDB says where another process, or another connection of this one, has a file open in
#: another way.
_HELD = (
    "Could not set lock",
    "being used by another process",
    "same database file",
    "Unique file handle conflict",
    "already attached",
)


class CatalogBusyError(AlabError):
    """Another process, or another connection of this one, holds the catalog."""


class ReadOnlyError(AlabError):
    """The warehouse is not ours to write."""


def table_names() -> list[str]:
    """The metadata tables that each run fills, in load order."""
    return [
        o.name for o in sqldoc.library() if o.kind == "table" and not o.name.startswith("catalog_")
    ]


@functools.cache
def metadata_schemas() -> "dict[str, pa.Schema]":
    """Arrow schema of each metadata table, as `sql/tables/` declares it."""
    with duckdb.connect() as db:
        for item in sqldoc.library():
            if item.kind == "table":
                db.execute(item.statement)
        return {name: db.table(name).to_arrow_table().schema for name in table_names()}


def _here(work: Callable, *arguments: object, **options: object) -> object:
    return work(*arguments, **options)


@contextmanager
def connect(
    lake: Lake, *, timeout: float = 2.0, on: Callable = _here
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the catalog for reading, up to date with the lake.

    Runs that wait in the lake are registered first. Where that cannot be, because another process
    holds the file or because the warehouse is not ours to write, a copy that is up to date is
    opened instead.

    Args:
        lake: the warehouse's lake.
        timeout: seconds to wait for another process that holds the file.
        on: calls a function, on another thread maybe. What brings the catalog up to date is done
            here; the connection is opened and closed there, and what binds that thread binds
            DuckDB's threads too.

    Raises:
        AlabError: there is no warehouse, the catalog is damaged, or it was written by a newer alab.
    """
    if not lake.root.is_dir():
        raise AlabError(
            f"there is no warehouse at {lake.warehouse}",
            "Capture a run first (alab capture SCENARIO), or name a warehouse with --warehouse or $ALAB_WAREHOUSE.",
        )
    with ExitStack() as stack:
        try:
            db = _current(lake, timeout, on)
            stack.callback(on, db.close)
        except (CatalogBusyError, ReadOnlyError):
            db = stack.enter_context(_copy(lake, on))
        except duckdb.Error as error:
            raise AlabError(
                f"the catalog {lake.catalog} is damaged: {first_line(error)}",
                "Build it anew: alab rebuild",
            ) from error
        yield prepare(db, lake)


def _current(lake: Lake, timeout: float, on: Callable) -> duckdb.DuckDBPyConnection:
    """The catalog itself, brought up to date where it is not."""
    lake.prepare()
    lake.sweep()
    if not lake.catalog.exists():
        sync(lake, timeout=timeout)
    db = open_file(lake, read_only=True, timeout=timeout)
    if _stale(db, lake):
        db.close()
        sync(lake, timeout=timeout)
    elif on is _here:
        return db
    db.close()
    return on(open_file, lake, read_only=True, timeout=timeout)


@contextmanager
def _copy(lake: Lake, on: Callable) -> Iterator[duckdb.DuckDBPyConnection]:
    """A copy that agrees with the lake; what users keep in a catalog that is being written is not in it."""
    with elsewhere(lake) as own:
        with suppress(AlabError), open_file(lake, read_only=True, timeout=0) as db:
            copy_file(db, own.catalog)
        sync(own)
        db = on(open_file, own, read_only=True, timeout=0)
        try:
            yield db
        finally:
            on(db.close)


@contextmanager
def elsewhere(lake: Lake, folder: Path | None = None) -> Iterator[Lake]:
    """The same lake with a catalog of its own, not there yet and gone afterwards, below a folder or anywhere."""
    own = copy.copy(lake)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".alab-") as inside:
        own.catalog = Path(inside) / lake.catalog.name
        yield own


def copy_file(db: duckdb.DuckDBPyConnection, to: Path) -> None:
    """Copy the file that a connection has open, so that nobody writes it meanwhile."""
    (path,) = db.execute(
        "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    ).fetchone()
    shutil.copyfile(path, to)
    if Path(
        f"{path}.wal"
    ).exists():  # a process was killed before what it had committed got into the file
        shutil.copyfile(f"{path}.wal", f"{to}.wal")


def prepare(db: duckdb.DuckDBPyConnection, lake: Lake) -> duckdb.DuckDBPyConnection:
    """Set what a connection to the catalog, or to a copy of it, needs to read the lake."""
    db.execute("SET VARIABLE alab_lake = ?", [glob_escaped(lake.root)])
    db.execute("SET enable_progress_bar = false")  # it goes to standard output, among the rows
    return db.execute("SET TimeZone = 'UTC'")


def sync(
    lake: Lake, *, timeout: float = 10.0, change: Callable[[], None] = lambda: None
) -> list[str]:
    """Make the catalog agree with the lake and the SQL library, in one transaction.

    Args:
        lake: the warehouse's lake.
        timeout: seconds to wait for another process that holds the file.
        change: a change of the lake to make first, while nobody else has the catalog open.

    Returns:
        Ids of the runs that were registered.
    """
    lake.prepare()
    with open_file(lake, read_only=False, timeout=timeout) as db:
        db.begin()
        info = _info(db)
        if info is None or info["sql_digest"] != sqldoc.digest() or info["lake"] != str(lake.root):
            load_library(db, lake, info)
        change()
        known, there = versions(db), lake.versions()
        _forget(db, [run_id for run_id in known if there.get(run_id) != known[run_id]])
        registered = sorted(run_id for run_id in there if there[run_id] != known.get(run_id))
        _register(db, lake, {run_id: there[run_id] for run_id in registered})
        load_index(db, lake)
        db.commit()
    return registered


def register(lake: Lake) -> str:
    """Make the catalog agree with the lake where that can be; else say why not, and the next command does it."""
    try:
        sync(lake)
    except (AlabError, duckdb.Error) as error:
        return first_line(error)
    return ""


def open_file(lake: Lake, *, read_only: bool, timeout: float) -> duckdb.DuckDBPyConnection:
    """Open the catalog as it is, trying again with jitter while another process holds it; `connect` does more."""
    deadline = time.monotonic() + timeout
    places = [path for path in (lake.catalog.parent, lake.catalog) if path.exists()]
    if not read_only and not all(os.access(path, os.W_OK) for path in places):
        raise ReadOnlyError(
            f"the warehouse {lake.warehouse} can only be read", "Work on a copy of it."
        )
    config = {} if read_only else {"storage_compatibility_version": STORAGE}
    while True:
        try:
            return duckdb.connect(str(lake.catalog), read_only=read_only, config=config)
        except duckdb.Error as error:
            if not any(sign in str(error) for sign in _HELD):
                raise AlabError(
                    f"cannot open the catalog {lake.catalog}: {first_line(error)}",
                    "Where the file is damaged, build it anew: alab rebuild",
                ) from error
            if time.monotonic() > deadline:
                raise CatalogBusyError(
                    f"another process holds the catalog {lake.catalog}",
                    "Close it (a DuckDB shell, a notebook) and try again; nothing is lost meanwhile.",
                ) from error
            time.sleep(random.uniform(0.01, 0.06))


def _info(db: duckdb.DuckDBPyConnection) -> dict | None:
    """The row of `catalog_info`; None in a new file."""
    found = db.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'catalog_info'").fetchone()
    row = (
        found
        and db.execute(
            "SELECT format, sql_digest, lake, alab_version, objects FROM catalog_info"
        ).fetchone()
    )
    if not row:
        return None
    if row[0] > FORMAT:
        raise AlabError(
            f"this warehouse was written by alab {row[3]}, which is newer than this one ({version('alab')})",
            "Upgrade: pip install -U alab",
        )
    return dict(zip(("format", "sql_digest", "lake", "alab_version", "objects"), row, strict=True))


def _stale(db: duckdb.DuckDBPyConnection, lake: Lake) -> bool:
    info = _info(db)
    if info is None or info["sql_digest"] != sqldoc.digest() or info["lake"] != str(lake.root):
        return True
    return versions(db) != lake.versions()


def versions(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The runs that the catalog has, each with the version of its metadata, as in `Lake.versions`."""
    return dict(db.execute("SELECT run_id, version FROM catalog_runs").fetchall())


def damaged(db: duckdb.DuckDBPyConnection) -> list[str]:
    """Ids of the runs that the lake has and the catalog leaves out, because their metadata is damaged."""
    rows = db.execute(
        "SELECT run_id FROM catalog_runs ANTI JOIN runs USING (run_id) ORDER BY run_id"
    ).fetchall()
    return [row[0] for row in rows]


def _forget(db: duckdb.DuckDBPyConnection, run_ids: list[str]) -> None:
    for table in [*table_names(), "catalog_runs"] if run_ids else []:
        statement = Template("DELETE FROM $table WHERE run_id IN (SELECT unnest(?))").substitute(
            table=table
        )
        db.execute(statement, [run_ids])


def _register(db: duckdb.DuckDBPyConnection, lake: Lake, versions: dict[str, int]) -> None:
    """Copy the metadata of runs into the tables; a run with a damaged file is left out, `alab check` names it.

    Each table is one statement for all runs: a statement for each run took 30 ms a run.
    """
    import pyarrow as pa

    sound = {
        run_id: files for run_id in versions if (files := lake.sound_files(run_id)) is not None
    }
    folders = [lake.dataset("metadata", run_id) for run_id in sound]
    if sound:  # these rows are verified, and not the whole file, which DuckDB may fail to read
        db.register("sound_files", pa.concat_tables(sound.values(), promote_options="default"))
        db.execute("INSERT INTO files BY NAME SELECT * FROM sound_files")
        db.unregister("sound_files")
    for table in table_names() if sound else []:
        paths = [
            glob_escaped(path)
            for folder in folders
            if (path := folder / f"{table}.parquet").exists()
        ]
        if paths and table != "files":
            insert = Template(
                "INSERT INTO $table BY NAME SELECT * FROM "
                "read_parquet(?, hive_partitioning = false, union_by_name = true)"  # older runs lack newer columns
            )
            db.execute(insert.substitute(table=table), [paths])
    # A run that is being amended just now is looked at again by the next command.
    broken = [
        run_id
        for run_id in versions
        if run_id not in sound and not (lake.staging / run_id).exists()
    ]
    seen = [run_id for run_id in [*sound, *broken] if lake.dataset("metadata", run_id).exists()]
    db.execute(
        "INSERT INTO catalog_runs SELECT unnest(?), unnest(?)",
        [seen, [versions[run_id] for run_id in seen]],
    )
