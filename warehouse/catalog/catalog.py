"""The catalog: a DuckDB file that is a function of the lake and the SQL library, of nothing else.

Whatever is in it can be thrown away: `Catalog.sync` registers the runs that the lake has and
forgets those that it has not, and a catalog of another version of the SQL library is filled anew.
"""

import functools
import os
import random
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from duckdb import DuckDBPyConnection as Connection

from warehouse.assets import query
from warehouse.atomic import writing
from warehouse.catalog import sqldoc
from warehouse.catalog.library import FORMAT, glob_escaped, load_index, load_library
from warehouse.errors import AlabError, ConflictError, first_line, from_inside
from warehouse.lake.lake import Lake

if TYPE_CHECKING:
    import pyarrow as pa

#: The oldest DuckDB whose command line opens the catalog.
STORAGE = "v1.2.0"
#: Threads of a query, where a process is one of many on its machine; None is one a processor.
THREADS: int | None = None
#: What DuckDB says where another process, or another connection of this one, has a file open in
#: another way.
_HELD = (
    "Could not set lock",
    "being used by another process",
    "same database file",
    "Unique file handle conflict",
    "already attached",
)


class CatalogBusyError(ConflictError):
    """Another process, or another connection of this one, holds the catalog."""


class ReadOnlyError(AlabError):
    """The warehouse is not ours to write."""


def table_names() -> list[str]:
    """The metadata tables that each run fills, in load order."""
    names = (item.name for item in sqldoc.library() if item.kind == "table")
    return [name for name in names if not name.startswith("catalog_")]


@functools.cache
def metadata_schemas() -> "dict[str, pa.Schema]":
    """Arrow schema of each metadata table, as `sql/tables/` declares it."""
    with duckdb.connect() as db:
        for item in sqldoc.library():
            if item.kind == "table":
                db.execute(item.statement)
        return {name: db.table(name).to_arrow_table().schema for name in table_names()}


def here(work: Callable, *arguments: object, **options: object) -> Any:
    """Call a function on this thread."""
    return work(*arguments, **options)


class Catalog:
    """The catalog of a lake, in the warehouse's file or another: kept up to date, and asked."""

    def __init__(self, lake: Lake, path: Path | None = None):
        self.lake = lake
        self.path = path or lake.catalog

    @contextmanager
    def connect(self, *, timeout: float = 2.0, on: Callable = here) -> Iterator[Connection]:
        """Open the file for reading, up to date with the lake.

        Runs that wait in the lake are registered first. Where that cannot be, because another
        process holds the file or because the warehouse is not ours to write, a copy that is up to
        date is opened instead.

        Args:
            timeout: seconds to wait for another process that holds the file.
            on: calls a function, on another thread maybe. What brings the catalog up to date is
                done here; the connection is opened and closed there, and what binds that thread
                binds DuckDB's threads too.

        Raises:
            AlabError: there is no warehouse, or the catalog is damaged or of a newer alab.
        """
        if not self.lake.is_there:
            raise AlabError(
                f"there is no warehouse at {self.lake.warehouse}",
                "Capture a run first (alab capture SCENARIO), "
                "or name a warehouse with --warehouse or $ALAB_WAREHOUSE.",
            )
        with ExitStack() as stack:
            try:
                db = self._current(timeout, on)
                stack.callback(on, db.close)
            except (CatalogBusyError, ReadOnlyError):
                db = stack.enter_context(self._copy(on))
            except duckdb.Error as error:
                raise from_inside(error) or AlabError(
                    f"the catalog {self.path} is damaged: {first_line(error)}",
                    "Build it anew: alab rebuild",
                ) from error
            yield self.prepare(db)

    def _current(self, timeout: float, on: Callable) -> Connection:
        """The file itself, brought up to date where it is not."""
        self.lake.prepare()
        self.lake.sweep()
        if not self.path.exists():
            self.sync(timeout=timeout)
        db = self.open(read_only=True, timeout=timeout)
        if not self._agrees(db):
            db.close()
            self.sync(timeout=timeout)
        elif on is here:
            return db
        db.close()
        return on(self.open, read_only=True, timeout=timeout)

    @contextmanager
    def _copy(self, on: Callable) -> Iterator[Connection]:
        """A copy that agrees with the lake; what users keep may be missing in it."""
        with self.elsewhere() as other:
            with suppress(AlabError), self.open(read_only=True, timeout=0) as db:
                _copy_file(db, other.path)
            other.sync()
            db = on(other.open, read_only=True, timeout=0)
            try:
                yield db
            finally:
                on(db.close)

    @contextmanager
    def elsewhere(self, folder: Path | None = None) -> Iterator["Catalog"]:
        """A second catalog of the lake, not there yet, and gone afterwards."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".alab-") as inside:
            yield Catalog(self.lake, Path(inside) / self.path.name)

    def snapshot(self) -> Connection:
        """Connect to a private copy of the file as it is now, which keeps nobody waiting."""
        # Where DuckDB makes a folder for what does not fit in memory, and removes it; the copy's
        # own folder is gone.
        spill = str(Path(tempfile.gettempdir()) / f"alab-{uuid.uuid4().hex}")
        with tempfile.TemporaryDirectory() as folder:
            self.copy(path := Path(folder) / self.path.name)
            return duckdb.connect(str(path), read_only=True, config={"temp_directory": spill})

    def copy(self, to: Path) -> None:
        """Copy the file as it is now, up to date with the lake."""
        with self.connect() as db:
            _copy_file(db, to)

    def prepare(self, db: Connection) -> Connection:
        """Set what a connection to this file, or to a copy of it, needs to read the lake."""
        self.point(db)
        self._reaching(db)
        if THREADS:
            db.execute("SET threads = ?", [THREADS])
        if self.lake.remote:
            state = db.execute("SELECT count(*), max(version) FROM catalog_runs").fetchone()
            if state != self.lake.remote.sized:  # so that no size is asked for
                files = db.execute("SELECT 'lake/' || path, n_bytes FROM files").fetchall()
                self.lake.remote.objects.sizes, self.lake.remote.sized = dict(files), state
        db.execute("SET enable_progress_bar = false")  # it goes to standard output, among the rows
        return db.execute("SET TimeZone = 'UTC'")

    def point(self, db: Connection) -> Connection:
        """Say where the lake lies: a variable of a connection, where settings may be locked."""
        return db.execute("SET VARIABLE alab_lake = ?", [glob_escaped(self.lake.address)])

    def sync(
        self, *, timeout: float = 10.0, change: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Make the file agree with the lake and the SQL library, in one transaction.

        Args:
            timeout: seconds to wait for another process that holds the file.
            change: a change of the lake to make first, while nobody else has the catalog open.

        Returns:
            Ids of the runs that were registered.
        """
        self.lake.prepare()
        with self.open(read_only=False, timeout=timeout) as db:
            db.begin()
            info = _info(db)
            if not self._is_current(info):
                load_library(db, self.lake, info)
            change()
            known, there = versions(db), self.lake.versions()
            _forget(db, [run_id for run_id in known if there.get(run_id) != known[run_id]])
            new = sorted(run_id for run_id in there if there[run_id] != known.get(run_id))
            _register(db, self.lake, {run_id: there[run_id] for run_id in new})
            load_index(db, self.lake)
            db.commit()
        return new

    def register(self) -> str:
        """Do as `sync` does where that can be; else say why not, and the next command does it."""
        try:
            self.sync()
        except (AlabError, duckdb.Error) as error:
            return first_line(error)
        return ""

    def add(self, run_id: str, progress: Callable[[str, int, int], None]) -> None:
        """Register a run that was published just now; tell where the next command has to do it."""
        if problem := self.register():
            later = "is in the lake; the next alab command registers it"
            progress(f"{run_id} {later}: {problem}", 0, 0)

    def open(self, *, read_only: bool, timeout: float) -> Connection:
        """Open the file as it is, trying again with jitter while another process holds it."""
        deadline = time.monotonic() + timeout
        places = [path for path in (self.path.parent, self.path) if path.exists()]
        if not read_only and not all(os.access(path, os.W_OK) for path in places):
            raise ReadOnlyError(
                f"the warehouse {self.lake.warehouse} can only be read", "Work on a copy of it."
            )
        config: dict[str, Any] = {} if read_only else {"storage_compatibility_version": STORAGE}
        while True:
            try:
                db = duckdb.connect(str(self.path), read_only=read_only, config=config)
                return self._reaching(db)
            except duckdb.Error as error:
                if not any(sign in str(error) for sign in _HELD):
                    raise AlabError(
                        f"cannot open the catalog {self.path}: {first_line(error)}",
                        "Where the file is damaged, build it anew: alab rebuild",
                    ) from error
                if time.monotonic() > deadline:
                    raise CatalogBusyError(
                        f"another process holds the catalog {self.path}",
                        "Close it (a DuckDB shell, a notebook) and try again; "
                        "nothing is lost meanwhile.",
                    ) from error
                time.sleep(random.uniform(0.01, 0.06))

    def _reaching(self, db: Connection) -> Connection:
        """A connection that can read a lake at a URL."""
        if self.lake.remote and not db.filesystem_is_registered(self.lake.remote.objects.protocol):
            from warehouse.lake.objects import file_system

            db.register_filesystem(file_system(self.lake.remote.objects, self.lake.root.parent))
        return db

    def _agrees(self, db: Connection) -> bool:
        """Whether the file has this SQL library and the runs that the lake has."""
        return self._is_current(_info(db)) and versions(db) == self.lake.versions()

    def _is_current(self, info: dict | None) -> bool:
        current = sqldoc.digest(), self.lake.address
        return info is not None and (info["sql_digest"], info["lake"]) == current


class Mirror:
    """A private copy of a catalog that follows the lake and keeps nobody waiting."""

    def __init__(self, lake: Lake):
        self._catalog = Catalog(lake)
        self._db: Connection | None = None
        self._versions: dict[str, int] = {}
        self._lock = threading.Lock()

    def cursor(self) -> Connection:
        """A connection that no other thread has, to a copy of the catalog as it is now."""
        with self._lock:
            if self._db is None or self._versions != self._catalog.lake.versions():
                self._db = self._catalog.snapshot()
                self._versions = versions(self._db)
            return self._catalog.prepare(self._db.cursor())


def connect(lake: Lake, **options: Any) -> AbstractContextManager[Connection]:
    """Open the catalog of a warehouse for reading, as `Catalog.connect` does."""
    return Catalog(lake).connect(**options)


def sync(lake: Lake, **options: Any) -> list[str]:
    """Make the catalog of a warehouse agree with its lake, as `Catalog.sync` does."""
    return Catalog(lake).sync(**options)


def write(lake: Lake, path: Path) -> Path:
    """Write a catalog of a lake at a URL, as it is now, to a file; gives the file.

    Raises:
        AlabError: the lake is local, or there is none, or the file cannot be written.
    """
    if lake.remote is None:
        raise AlabError(f"the catalog of {lake.warehouse} is a file: {lake.catalog}", "Open that.")
    with connect(lake), writing(path, "--output") as draft:
        Catalog(lake, draft).sync()
    return path


def _copy_file(db: Connection, to: Path) -> None:
    """Copy the file that a connection has open, so that nobody writes it meanwhile."""
    row = db.execute(
        "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    ).fetchone()
    assert row is not None
    shutil.copyfile(row[0], to)
    log = Path(f"{row[0]}.wal")
    if log.exists():  # a process was killed before what it had committed got into the file
        shutil.copyfile(log, f"{to}.wal")


def _info(db: Connection) -> dict | None:
    """The row of `catalog_info`; None in a new file."""
    if not db.execute("FROM duckdb_tables() WHERE table_name = 'catalog_info'").fetchone():
        return None
    cursor = db.execute("FROM catalog_info")
    if (row := cursor.fetchone()) is None:
        return None
    info = dict(zip((column[0] for column in cursor.description), row, strict=True))
    if info["format"] > FORMAT:
        raise AlabError(
            f"this warehouse was written by alab {info['alab_version']}, "
            f"which is newer than this one ({version('alab')})",
            "Upgrade: pip install -U alab",
        )
    return info


def versions(db: Connection) -> dict[str, int]:
    """The runs that the catalog has, each with the version of its metadata."""
    return dict(db.execute("SELECT run_id, version FROM catalog_runs").fetchall())


def damaged(db: Connection) -> list[str]:
    """Ids of the runs that are left out of the catalog, because their metadata is damaged."""
    rows = db.execute(
        "SELECT run_id FROM catalog_runs ANTI JOIN runs USING (run_id) ORDER BY run_id"
    ).fetchall()
    return [row[0] for row in rows]


def _forget(db: Connection, run_ids: list[str]) -> None:
    for statement in db.extract_statements(query("forget")) if run_ids else []:
        db.execute(statement, {"run_ids": run_ids})


def _register(db: Connection, lake: Lake, versions: dict[str, int]) -> None:
    """Copy the metadata of runs into the tables.

    A run with a damaged file is left out, `alab check` names it.
    """
    import pyarrow as pa

    sound = {
        run_id: files for run_id in versions if (files := lake.sound_files(run_id)) is not None
    }
    if sound:  # these rows are verified, and not the whole file, which DuckDB may fail to read
        db.register("sound_files", pa.concat_tables(sound.values(), promote_options="default"))
        db.execute("INSERT INTO files BY NAME FROM sound_files")
        db.unregister("sound_files")
    folders = [lake.dataset("metadata", run_id) for run_id in sound]
    for statement in db.extract_statements(query("register")):
        (table,) = statement.named_parameters
        files = [path for folder in folders if (path := folder / f"{table}.parquet").exists()]
        if files:
            db.execute(statement, {table: [glob_escaped(path) for path in files]})
    # A run that is being amended just now is looked at again by the next command.
    known = [
        run_id
        for run_id in versions
        if (run_id in sound or not (lake.staging / run_id).exists())
        and lake.dataset("metadata", run_id).exists()
    ]
    db.execute(
        "INSERT INTO catalog_runs SELECT unnest(?), unnest(?)",
        [known, [versions[run_id] for run_id in known]],
    )
