"""The lake: where its files are, and publishing by rename.

    <warehouse>/lake/activations/run=<run_id>/steps=<first>-<last>/layer=<NN>/part-<n>.parquet
    <warehouse>/lake/attention/…      one row per head and query position, the causal half of the weights
    <warehouse>/lake/outputs/…        embeddings and logits, without the layer folder
    <warehouse>/lake/states/run=<run_id>/part-0.parquet
    <warehouse>/lake/labels/run=<run_id>/part-0.parquet      the rows of a dataset
    <warehouse>/lake/logit_lens/run=<run_id>/<site>.parquet
    <warehouse>/lake/metadata/run=<run_id>/<table>.parquet
    <warehouse>/lake/models/<weights_hash>/    final norm and unembedding of a model, see `warehouse.lens.head`
    <warehouse>/lake/.staging/        runs being written
    <warehouse>/lake/.empty/          one file without rows per dataset, so that views bind in an empty lake

A run exists once its metadata folder does; that rename is the last step of publishing.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from warehouse.errors import AlabError

if TYPE_CHECKING:
    import pyarrow as pa

#: Folders below a run's folder, per dataset.
TAILS = {
    "activations": "/steps=*/layer=*/*.parquet",
    "attention": "/steps=*/layer=*/*.parquet",
    "outputs": "/steps=*/*.parquet",
    "states": "/*.parquet",
    "logit_lens": "/*.parquet",
    "labels": "/*.parquet",
    # These two are the files of `models/<key>/`, and have no folder of a run.
    "norm": "/norm.parquet",
    "unembedding": "/unembedding.parquet",
}


#: Where the table `files` keeps the `digest` of its rows, in its schema's metadata.
DIGEST = b"alab_digest"


class Lake:
    """The lake of one warehouse.

    Args:
        warehouse: the warehouse's directory; created when first written to.

    Raises:
        AlabError: DuckDB cannot keep a catalog in a directory of this name.
    """

    def __init__(self, warehouse: Path | str):
        self.warehouse = Path(warehouse).absolute()
        self.root = self.warehouse / "lake"
        self.catalog = self.warehouse / "alab.duckdb"
        _check_place(self.warehouse)
        self.staging = self.root / ".staging"

    def dataset(self, dataset: str, run_id: str) -> Path:
        """Folder of a run in a dataset."""
        return self.root / dataset / f"run={run_id}"

    def run_ids(self) -> list[str]:
        """Ids of all published runs."""
        return sorted(self.versions())

    def versions(self) -> dict[str, int]:
        """When each published run's metadata last changed, in nanoseconds, by run id."""
        folder = self.root / "metadata"
        found = folder.glob("run=*") if folder.is_dir() else []
        versions = {}
        for path in found:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                versions[path.name.removeprefix("run=")] = path.stat().st_mtime_ns
        return versions

    def models(self) -> list[str]:
        """Keys of the models whose final norm and unembedding are kept."""
        return sorted(path.name for path in (self.root / "models").glob("[!.]*/"))

    def prepare(self) -> None:
        """Create the folders and the files without rows; does nothing in a lake that has them."""
        empty = {
            name: self.root / ".empty" / f"{name}/run=0{tail.replace('*', '0')}"
            for name, tail in TAILS.items()
        }
        try:
            self.staging.mkdir(parents=True, exist_ok=True)
            for dataset, path in empty.items():
                if not path.exists():
                    from warehouse.lake import schemas as parquet

                    unfinished = path.with_suffix(f".{datetime.now(UTC).timestamp()}")
                    parquet.open_parquet(unfinished, parquet.empty_schema(dataset)).close()
                    unfinished.replace(path)
        except OSError as error:
            if all(path.exists() for path in empty.values()):
                return  # a lake that can only be read, and needs nothing
            raise AlabError(
                f"cannot write to the warehouse {self.warehouse}: {error.strerror}",
                "Name another directory with --warehouse or $ALAB_WAREHOUSE.",
            ) from error

    def stage(self, name: str, *, run_id: str | None = None) -> "StagedRun":
        """Begin a run of the scenario `name`, under a new id `<name>_<UTC timestamp>`, or under the one given.

        Raises:
            AlabError: the lake has, or is being given, a run of the id given.
        """
        self.prepare()
        stem = run_id or f"{name}_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        for attempt in range(1, 2 if run_id else 10_000):
            run_id = stem if attempt == 1 else f"{stem}-{attempt}"
            lock = FileLock(self.staging / f"{run_id}.lock", blocking=False)
            try:
                lock.acquire()
                (self.staging / run_id).mkdir()
            except (Timeout, FileExistsError):
                lock.release()
                continue
            if not self.dataset("metadata", run_id).exists():
                return StagedRun(self, run_id, lock)
            StagedRun(self, run_id, lock).discard()
        raise AlabError(
            f"the warehouse already has the run {stem}",
            "Give the new one another: alab import --name",
        )

    def sweep(self) -> list[str]:
        """Remove what killed captures left behind; runs still being written are locked and stay.

        Returns:
            Ids of the runs that were swept.
        """
        swept = []
        for folder in self.staging.glob("*/"):
            lock = FileLock(self.staging / f"{folder.name}.lock", blocking=False)
            with contextlib.suppress(OSError):  # locked, or not ours to delete
                lock.acquire()
                swept += [folder.name] if folder.exists() else []
                StagedRun(self, folder.name, lock).discard()
        return swept

    @contextlib.contextmanager
    def hold(self, run_id: str, *, damaged: bool = False) -> Iterator["StagedRun"]:
        """Keep other processes from changing a published run meanwhile.

        Args:
            run_id: id of the run.
            damaged: also where its metadata is damaged; to amend it would hide from `alab check`
                what was lost.

        Raises:
            AlabError: another process is changing it, or has removed it, or it is damaged.
        """
        self.prepare()
        lock = FileLock(self.staging / f"{run_id}.lock", timeout=10)
        try:
            lock.acquire()
        except Timeout:
            raise AlabError(
                f"another process is changing the run {run_id}", "Try again when it is done."
            ) from None
        staged = StagedRun(self, run_id, lock)
        staged.folder.mkdir(exist_ok=True)
        try:
            if not self.dataset("metadata", run_id).exists():
                raise AlabError(f"the run {run_id} is gone", "See those that are left: alab runs")
            if not damaged and self.sound_files(run_id) is None:
                raise AlabError(
                    f"the metadata of {run_id} is damaged; nothing was changed",
                    "What is: alab check",
                )
            yield staged
        finally:
            staged.discard()

    def remove(self, run_id: str) -> None:
        """Delete a run: taking its metadata away, in one rename, makes it a run that was never published."""
        with self.hold(run_id, damaged=True) as held:
            home = held.path("metadata")
            home.parent.mkdir()
            self.dataset("metadata", run_id).rename(home)

    def drop(self, run_id: str, datasets: Iterable[str]) -> None:
        """Delete some datasets of a run; the others and its metadata stay."""
        with self.hold(run_id) as held:
            files, dropped = self.metadata(run_id, "files"), set(datasets)
            kept = [dataset not in dropped for dataset in files["dataset"].to_pylist()]
            held.amend({"files": files.filter(kept), "runs": self.metadata(run_id, "runs")})

    def metadata(self, run_id: str, table: str) -> "pa.Table":
        """A metadata table of a run, as the lake has it."""
        from pyarrow.parquet import ParquetFile

        return ParquetFile(self.dataset("metadata", run_id) / f"{table}.parquet").read()

    def file_table(self, run_id: str) -> "pa.Table":
        """A run's metadata table `files`.

        Raises:
            OSError, ValueError: the table is damaged or not there.
        """
        table = self.metadata(run_id, "files")
        known = (table.schema.metadata or {}).get(DIGEST)
        if known is not None and known != digest(table.to_pylist()):
            raise ValueError("its rows are not those that were written")
        return table

    def sound_files(self, run_id: str) -> "pa.Table | None":
        """The table `files` of a run whose metadata is as it was written, by checksum; None where it is damaged."""
        try:
            table = self.file_table(run_id)
            sums = {
                row["path"]: row["sha256"]
                for row in table.to_pylist()
                if row["dataset"] == "metadata"
            }
            own = all(path.startswith(f"metadata/run={run_id}/") for path in sums)
            if (
                own
                and sums
                and all(sha256(self.root / path) == known for path, known in sums.items())
            ):
                return table
        except Exception:  # whatever damage makes of a table
            pass
        return None

    def files(self, run_id: str) -> Iterator[Path]:
        """Every file of a published run."""
        for folder in sorted(self.root.glob(f"[!.]*/run={run_id}")):
            yield from sorted(folder.rglob("*.parquet"))


def _check_place(warehouse: Path) -> None:
    """Refuse what DuckDB takes for something else in the path of a database, whose links it resolves."""
    for path in (str(warehouse), os.path.realpath(warehouse)):
        text = path.encode(errors="replace").decode()
        why = next((f"DuckDB reads no path with a {char}" for char in "?\\" if char in path), "")
        if why or text != path:
            raise AlabError(
                f"there can be no warehouse at {text}: {why or 'the path is not text in UTF-8'}",
                "Name another directory with --warehouse or $ALAB_WAREHOUSE.",
            )


class StagedRun:
    """A run that is being written: invisible until `publish()`, gone after `discard()`.

    Attributes:
        run_id: id of the run.
        folder: where its files are written meanwhile, laid out like the lake.
    """

    def __init__(self, lake: Lake, run_id: str, lock: FileLock):
        self.lake = lake
        self.run_id = run_id
        self.folder = lake.staging / run_id
        self._lock = lock

    def path(self, dataset: str, *parts: str) -> Path:
        """Where a file of the run is written meanwhile."""
        return self.folder.joinpath(dataset, f"run={self.run_id}", *parts)

    def publish(self, metadata: "dict[str, pa.Table]") -> None:
        """Make the run exist: write its metadata and rename everything into the lake, metadata last.

        Args:
            metadata: a table per metadata table; `files` is added here.
        """
        from warehouse.lake import schemas as parquet

        files = [
            parquet.file_row(self.run_id, path, self.folder)
            for path in sorted(self.folder.rglob("*.parquet"))
        ]
        parquet.write_metadata(self.path("metadata"), metadata, files)
        for source in sorted(
            self.folder.glob(f"*/run={self.run_id}"),
            key=lambda path: path.parent.name == "metadata",
        ):
            target = self.lake.dataset(source.parent.name, self.run_id)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        self._close()

    def amend(self, metadata: "dict[str, pa.Table]") -> None:
        """Replace metadata tables of a published run, all of them or none.

        Args:
            metadata: the new tables, `files` and `runs` among them. Rows of `files` about metadata
                are renewed. A dataset that `files` does not name is deleted.
        """
        from warehouse.lake import schemas as parquet

        home = self.lake.dataset("metadata", self.run_id)
        draft = self.folder / "draft" / "metadata" / home.name
        shutil.copytree(home, draft)
        files = [row for row in metadata["files"].to_pylist() if row["dataset"] != "metadata"]
        parquet.write_metadata(draft, metadata, files)
        draft.parent.rename(
            self.folder / "metadata"
        )  # from here on, `discard` finishes what is left to do

    def discard(self) -> None:
        """Leave the run as it was last published or amended, or gone where it never was."""
        home = self.lake.dataset("metadata", self.run_id)
        if home.exists():
            for path in self.path("metadata").glob("*.parquet"):
                path.replace(home / path.name)
        published = home.exists()
        files = self.lake.sound_files(self.run_id) if published else None
        if files is not None or not published:  # where metadata is damaged, nothing more is lost
            keep = {"metadata", *files["dataset"].to_pylist()} if published else set()
            for folder in self.lake.root.glob(f"[!.]*/run={self.run_id}"):
                if folder.parent.name not in keep:
                    shutil.rmtree(folder, ignore_errors=True)
        self._close()

    def _close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(self._lock.lock_file).unlink(
            missing_ok=True
        )  # while it is held, so that nobody else's goes
        self._lock.release()


def digest(rows: list[dict]) -> bytes:
    """Checksum of the rows of the table `files`, which nothing else vouches for."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest().encode()


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
