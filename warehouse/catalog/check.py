"""Looks for what is not as it was written in a warehouse: `alab check` and `alab rebuild`."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb

from warehouse.assets import query
from warehouse.catalog import catalog, library
from warehouse.catalog.catalog import Catalog
from warehouse.errors import AlabError, first_line
from warehouse.lake import store
from warehouse.lake.lake import Lake
from warehouse.lake.manifest import sha256


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: `missing`, `truncated`, `changed`, `damaged`, `stray`, `orphan`, `unregistered` or
            `catalog`.
        where: the file or folder relative to the lake, or the table of the catalog.
        message: what is wrong, in words.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind:<12} {self.where}: {self.message}"


def check(lake: Lake, *, deep: bool = False) -> list[Problem]:
    """Compare the files with what each run's metadata says of them, and the catalog with the lake.

    Metadata, states and lens are compared by checksum, bulky files by size and rows; `deep` reads
    their tensors too, which verifies the checksum of each compressed block.

    Raises:
        AlabError: there is no warehouse.
    """
    _require_warehouse(lake)
    problems = []
    if lake.remote:
        from warehouse.lake import survey  # with what it takes, only where it is needed

        problems += [Problem(*found) for found in survey.problems(lake.remote)]
    for run_id in lake.run_ids():
        problems += _check_run(lake, run_id, deep)
    for path in orphans(lake):
        problems.append(Problem("orphan", _name(lake, path), "belongs to no run"))
    return problems + list(_check_catalog(lake))


def _require_warehouse(lake: Lake) -> None:
    if not lake.is_there and not (lake.remote and lake.remote.objects.listing("lake")):
        raise AlabError(
            f"there is no warehouse at {lake.warehouse}", "Name another one with --warehouse."
        )


def repair(lake: Lake) -> None:
    """Delete orphan folders and build the catalog anew; runs that lost data stay as they are.

    At a URL what could not be uploaded is published first.
    """
    lake.publish_kept()
    for path in orphans(lake):
        shutil.rmtree(path)
    rebuild(lake)


def rebuild(lake: Lake) -> list[str]:
    """Replace the catalog by one that is built from the lake alone.

    Returns:
        Ids of the runs in it.
    """
    _require_warehouse(lake)
    lake.sweep()
    if lake.remote:
        from warehouse.lake import survey

        survey.repair(lake.remote)
    with Catalog(lake).elsewhere(lake.catalog.parent) as fresh:
        run_ids = fresh.sync()
        lake.catalog.with_name(f"{lake.catalog.name}.wal").unlink(missing_ok=True)
        fresh.path.replace(lake.catalog)
    return run_ids


def orphans(lake: Lake) -> list[Path]:
    """Folders of runs that have no metadata and that nobody is writing."""
    known = {*lake.run_ids(), *(path.name for path in lake.staging.glob("*/"))}
    folders = sorted(lake.root.glob("[!.]*/run=*"))
    return [path for path in folders if path.name.removeprefix("run=") not in known]


def _name(lake: Lake, path: Path) -> str:
    return path.relative_to(lake.root).as_posix()


def _check_run(lake: Lake, run_id: str, deep: bool) -> Iterator[Problem]:
    home = lake.dataset("metadata", run_id)
    tables = {}
    for table in ("runs", "files"):
        try:
            tables[table] = lake.metadata(run_id, table).to_pylist()
        except FileNotFoundError:
            yield Problem("missing", _name(lake, home / f"{table}.parquet"), "every run has one")
        except Exception as error:  # whatever damage makes of a file
            yield Problem("damaged", _name(lake, home / f"{table}.parquet"), first_line(error))
    if "runs" in tables and [row["run_id"] for row in tables["runs"]] != [run_id]:
        found = ", ".join(row["run_id"] for row in tables["runs"]) or "none"
        yield Problem("changed", _name(lake, home), f"its metadata is of another run: {found}")
    if "files" in tables:
        for row in tables["files"]:
            yield from _check_file(lake, row, deep)
        named = {row["path"] for row in tables["files"]} | {_name(lake, home / "files.parquet")}
        for where in (_name(lake, path) for path in lake.files(run_id)):
            if where not in named:
                yield Problem("stray", where, "the run's metadata does not name this file")


def _check_file(lake: Lake, row: dict, deep: bool) -> Iterator[Problem]:
    """Compare one file with its row of the table `files`."""
    path, where = lake.file(row["path"]), row["path"]
    try:
        size = store.size(path)
        if size < row["n_bytes"]:
            yield Problem("truncated", where, f"{size:,} of {row['n_bytes']:,} bytes")
        elif size > row["n_bytes"]:
            yield Problem("changed", where, f"{size:,} bytes, written as {row['n_bytes']:,}")
        elif row["sha256"]:
            if sha256(path) != row["sha256"]:
                yield Problem("changed", where, "the checksum is not the one it was written with")
        elif deep or not lake.remote:  # there each costs a request
            file = store.parquet(path)
            if (rows := file.metadata.num_rows) != row["n_rows"]:
                yield Problem("changed", where, f"{rows:,} rows, written as {row['n_rows']:,}")
            for group in range(file.num_row_groups) if deep else ():
                file.read_row_group(group)
    except FileNotFoundError:
        yield Problem("missing", where, f"a file of {row['n_bytes']:,} bytes is gone")
    except Exception as error:  # whatever damage makes of a file
        yield Problem("damaged", where, first_line(error))


def _check_catalog(lake: Lake) -> Iterator[Problem]:
    """Compare every table of the catalog with one that is built from the lake now."""
    where = lake.catalog.name
    if not lake.catalog.exists() and (lake.remote or not lake.run_ids()):
        return  # at a URL it is no more than what this machine keeps of the lake
    if not lake.catalog.exists():
        yield Problem("catalog", where, "there is none; it comes back with the next command")
        return
    with Catalog(lake).elsewhere() as fresh:
        fresh.sync()
        try:
            with Catalog(lake).open(read_only=True, timeout=10) as db:
                yield from _compare(db, fresh.path)
        except (AlabError, duckdb.Error) as error:  # damaged, or another process writes it
            yield Problem("catalog", where, f"cannot be compared: {first_line(error)}")


def _compare(db: duckdb.DuckDBPyConnection, other: Path) -> Iterator[Problem]:
    db.execute(library.filled(query("attach"), path=str(other)))
    here = {row[0] for row in db.execute("SELECT run_id FROM catalog_runs").fetchall()}
    there = {row[0] for row in db.execute("SELECT run_id FROM lake.catalog_runs").fetchall()}
    later = "not in the catalog; the next command that may write registers it"
    yield from (Problem("unregistered", run_id, later) for run_id in sorted(there - here))
    for table in catalog.table_names():
        new = f"lake.{table}"
        try:
            for a, b, text in (new, table, "lacks"), (table, new, "has beside the lake's"):
                values = {"one": a, "other": b}
                for run_id, count in db.execute(query("difference"), values).fetchall():
                    if run_id in here:
                        yield Problem("catalog", table, f"{text} {count} rows of {run_id}")
        except duckdb.Error as error:
            yield Problem("catalog", table, first_line(error))
