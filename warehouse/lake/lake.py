"""The lake: where its files are, and publishing by rename.

    lake/activations/run=<run_id>/steps=<first>-<last>/layer=<NN>/part-<n>.parquet
    lake/attention/…      one row per head and query position, the causal half of the weights
    lake/outputs/…        embeddings and logits, without the layer folder
    lake/states/run=<run_id>/part-0.parquet
    lake/labels/run=<run_id>/part-0.parquet      the rows of a dataset
    lake/logit_lens/run=<run_id>/<site>.parquet
    lake/metadata/run=<run_id>/<table>.parquet
    lake/models/<weights_hash>/    final norm and unembedding of a model: `warehouse.lens.store`
    lake/.staging/        runs being written
    lake/.empty/          a file without rows per dataset, so that views bind in an empty lake

A run exists once its metadata folder does; that rename is the last step of publishing. At a URL the
same folders hold objects: see `warehouse.lake.remote`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.errors import AlabError, ConflictError, NotThereError
from warehouse.lake import manifest, store
from warehouse.lake.staging import REQUEST, StagedRun

if TYPE_CHECKING:
    import pyarrow as pa

    from warehouse.lake.objects import ObjectFile
    from warehouse.lake.remote import Remote

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


class Lake:
    """The lake of one warehouse.

    Args:
        warehouse: the warehouse's directory, or the URL of one in an object store; created when
            first written to.

    Attributes:
        warehouse: its name: the directory, or the URL.
        home: a local directory: the warehouse's own, or that of its mirror.
        root: the lake's folder; of one at a URL its mirror.
        address: the lake as SQL names it.
        catalog: the catalog's file.
        remote: the far side of a lake at a URL; None for a local one.

    Raises:
        AlabError: DuckDB cannot keep a catalog in a directory of this name.
    """

    def __init__(self, warehouse: Path | str):
        is_url = isinstance(warehouse, str) and "://" in warehouse
        self.remote: Remote | None = None
        if is_url:
            from warehouse.lake import remote  # with what it takes, only where it is needed

            self.remote = remote.Remote(str(warehouse).rstrip("/"))
        self.home = home = self.remote.home if self.remote else Path(warehouse).absolute()
        self.warehouse: Path | str = self.remote.url if self.remote else home
        self.root = home / "lake"
        self.catalog = home / "alab.duckdb"
        self.address = self.remote.address if self.remote else str(self.root)
        _check_place(home)
        self.staging = self.root / ".staging"

    @property
    def is_there(self) -> bool:
        """Whether there is a lake to read."""
        if self.remote:
            return (self.remote.known()["version"] or self.remote.pull()["version"]) is not None
        return self.root.is_dir()

    def file(self, path: str) -> "Path | ObjectFile":
        """A file of the lake, to be read, by its path in the table `files`."""
        here = self.root / path
        return here if self.remote is None or here.is_file() else self.remote.file(path)

    def dataset(self, dataset: str, run_id: str) -> Path:
        """Folder of a run in a dataset."""
        return self.root / dataset / f"run={run_id}"

    def run_ids(self) -> list[str]:
        """Ids of all published runs."""
        return sorted(self.versions())

    def versions(self) -> dict[str, int]:
        """When each published run's metadata last changed, in nanoseconds, by run id.

        Of a lake at a URL those in the mirror, which is brought up to date.
        """
        if self.remote:
            self.remote.pull()
        runs = {
            path.name.removeprefix("run="): store.version(path)
            for path in store.paths(self.root / "metadata", "run=*")
        }
        return {run_id: at for run_id, at in runs.items() if at is not None}  # else removed by now

    def models(self) -> list[str]:
        """Keys of the models whose final norm and unembedding are kept."""
        if self.remote:
            return sorted(self.remote.known()["models"])
        return [path.name for path in store.paths(self.root / "models", "[!.]*/")]

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
                    from warehouse.lake.parquet import open_parquet
                    from warehouse.lake.schemas import empty_schema

                    unfinished = path.with_suffix(f".{datetime.now(UTC).timestamp()}")
                    open_parquet(unfinished, empty_schema(dataset)).close()
                    store.move(unfinished, path)
        except OSError as error:
            if all(path.exists() for path in empty.values()):
                return  # a lake that can only be read, and needs nothing
            raise AlabError(
                f"cannot write to the warehouse {self.warehouse}: {error.strerror}",
                "Name another directory with --warehouse or $ALAB_WAREHOUSE.",
            ) from error

    def stage(self, name: str, *, run_id: str | None = None) -> StagedRun:
        """Begin a run of the scenario `name`, as `<name>_<UTC timestamp>` or under the id given.

        Raises:
            AlabError: the lake has, or is being given, a run of the id given.
        """
        self._begin()
        stem = run_id or f"{name}_{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        for attempt in range(1, 2 if run_id else 10_000):
            run_id = stem if attempt == 1 else f"{stem}-{attempt}"
            try:
                staged = self._staged(run_id)
            except TimeoutError:
                continue
            is_new = not staged.folder.exists() and not self.dataset("metadata", run_id).exists()
            if is_new and staged.claim():
                return staged
            staged.release()
        raise AlabError(
            f"the warehouse already has the run {stem}",
            "Give the new one another: alab import --name",
        )

    def _begin(self) -> None:
        """Make the lake where there is none."""
        self.prepare()
        if self.remote:
            self.remote.begin()

    def sweep(self) -> list[str]:
        """Remove what killed captures left behind; runs still being written are locked and stay.

        Returns:
            Ids of the runs that were swept.
        """
        swept = []
        for folder in store.paths(self.staging, "*/"):
            with suppress(OSError):  # locked, or not ours to delete
                staged = self._staged(folder.name)
                try:
                    if folder.name in self._stopped() and not staged.is_lost:
                        staged.release()
                        continue
                    staged.take_parts()
                except BaseException:
                    staged.release()
                    raise
                swept += [folder.name] if folder.exists() else []
                staged.discard()
        return swept

    def unfinished(self) -> dict[str, dict]:
        """Captures that were stopped and can be gone on with, and what each asked for, by id.

        At a URL also those that any machine reads in shards.
        """
        begun = self.remote.pull()["begun"] if self.remote else {}  # first: it may be published
        return self._stopped() | begun

    def _stopped(self) -> dict[str, dict]:
        """What of `unfinished` lies here."""
        asked = {}
        for path in store.paths(self.staging, f"*/{REQUEST}"):
            run_id = path.parent.name
            if not self.dataset("metadata", run_id).exists():  # else its last step was tidying up
                with suppress(FileNotFoundError):  # done since
                    asked[run_id] = json.loads(path.read_text("utf-8"))
        return asked

    def resume(self, run_id: str) -> StagedRun:
        """Go on with a capture that was stopped.

        Raises:
            AlabError: another process is at it.
        """
        busy = ConflictError(f"another process is capturing {run_id}", "Wait for it.")
        try:
            staged = self._staged(run_id)
        except TimeoutError:
            raise busy from None
        try:
            staged.take_parts()
            is_shared = self.remote and "shards" in self.unfinished().get(run_id, {})
            if is_shared and not staged.share(None):
                raise ConflictError(f"{run_id} was published or deleted", "See: alab runs")
        except BaseException as error:
            staged.release()
            raise (busy if isinstance(error, TimeoutError) else error) from None
        if not self.dataset("metadata", run_id).exists():
            staged.recall()
        return staged

    def join(self, run_id: str, request: dict, part: int, wait: float = 10) -> StagedRun | None:
        """Work on one part of a run that others work on too; whoever comes first begins the run.

        Args:
            run_id: id of the run, which all of them know.
            request: what it is begun with.
            part: the part, from 1.
            wait: seconds to wait for a process that has the part.

        Returns:
            The run, of which the part is ours until `release`; None where it is published already.

        Raises:
            AlabError: another process has the part, or publishes or removes the run.
        """
        self._begin()
        try:
            whole = self._staged(run_id, wait=6 * wait)
        except TimeoutError:
            raise ConflictError(
                f"another process is publishing or removing {run_id}", "Try again when it is done."
            ) from None
        try:
            if self.dataset("metadata", run_id).exists():
                return None
            if self.remote and not whole.share(request):
                self.remote.refresh(run_id)
                return None
            if not self.remote and whole.request is None:
                store.delete(whole.folder)  # of one that died before it had begun the run
                whole.folder.mkdir()
                whole.ask(request)
            lock = store.lock(whole.folder / "shards" / f"{part}.lock", wait)
        except TimeoutError:
            what = f"another process is reading shard {part} of {run_id}"
            raise ConflictError(what, "Wait for it; where it dies, this command goes on.") from None
        finally:
            whole.release()
        staged = StagedRun(self.root, run_id, lock, self.remote)
        own = staged.request or request
        try:
            staged.collect(range(part - 1, own["parts"], own["shards"]))
        except BaseException:
            staged.release()
            raise
        return staged

    def missing(self, run_id: str, request: dict) -> list[int]:
        """Parts, from 1, of a run that was joined of which a shard is not finished.

        Args:
            run_id: id of the run.
            request: what it was begun with: `shards` says how many parts share its `parts` shards.
        """
        folder, count = self.staging / run_id, request["shards"]
        there = {int(path.name) for path in store.paths(folder, "shards/[0-9]*/")}
        if self.remote:
            from warehouse.lake.shared import SharedRun

            there = SharedRun(self.remote, run_id, folder, request["claim"]).there()
        every = ((n + 1, range(n, request["parts"], count)) for n in range(count))
        return [part for part, own in every if not there.issuperset(own)]

    @contextmanager
    def hold(self, run_id: str, *, damaged: bool = False) -> Iterator[StagedRun]:
        """Keep other processes from changing a published run meanwhile.

        One whose metadata is damaged is held with `damaged` alone: to amend it would hide from
        `alab check` what was lost.

        Raises:
            AlabError: another process is changing it, or has removed it, or it is damaged.
        """
        self.prepare()
        try:
            staged = self._staged(run_id, wait=10)
        except TimeoutError:
            raise ConflictError(
                f"another process is changing the run {run_id}", "Try again when it is done."
            ) from None
        staged.folder.mkdir(exist_ok=True)
        try:
            if self.remote:
                staged.version = self.remote.refresh(run_id)
            if not self.dataset("metadata", run_id).exists():
                raise NotThereError(
                    f"the run {run_id} is gone", "See those that are left: alab runs"
                )
            if not damaged and self.sound_files(run_id) is None:
                raise AlabError(
                    f"the metadata of {run_id} is damaged; nothing was changed",
                    "What is: alab check",
                )
            yield staged
        finally:
            staged.discard()

    def _staged(self, run_id: str, wait: float = 0) -> StagedRun:
        """A run that nobody else writes; TimeoutError where somebody does."""
        lock = store.lock(self.staging / f"{run_id}.lock", wait)
        return StagedRun(self.root, run_id, lock, self.remote)

    def remove(self, run_id: str) -> None:
        """Delete a run: without metadata, which goes in one move, it was never published."""
        with self.hold(run_id, damaged=True) as staged:
            if self.remote:
                self.remote.remove(run_id, staged.version)
            store.move(self.dataset("metadata", run_id), staged.path("metadata"))

    def drop(self, run_id: str, datasets: Iterable[str]) -> None:
        """Delete some datasets of a run; the others and its metadata stay."""
        with self.hold(run_id) as staged:
            files, dropped = self.metadata(run_id, "files"), set(datasets)
            rest = [dataset not in dropped for dataset in files["dataset"].to_pylist()]
            staged.amend({"files": files.filter(rest), "runs": self.metadata(run_id, "runs")})

    def metadata(self, run_id: str, table: str) -> "pa.Table":
        """A metadata table of a run.

        Raises:
            OSError, ValueError: the table is damaged or not there.
        """
        return manifest.read(self.dataset("metadata", run_id), table)

    def sound_files(self, run_id: str) -> "pa.Table | None":
        """The table `files` of a run whose metadata is as it was written; None where it is not."""
        return manifest.sound(self.dataset("metadata", run_id))

    def files(self, run_id: str) -> list[Path]:
        """Every file of a published run that lies here: at a URL those are its metadata."""
        return store.paths(self.root, f"[!.]*/run={run_id}/**/*.parquet")

    def sizes(self, run_id: str) -> list[tuple[str, int]]:
        """Dataset and bytes of every file of a published run."""
        if self.remote:
            files = self.sound_files(run_id)
            rows = files.to_pylist() if files else []
            return [(row["dataset"], row["n_bytes"]) for row in rows]
        paths = self.files(run_id)
        return [(path.relative_to(self.root).parts[0], store.size(path)) for path in paths]

    def publish_kept(self) -> None:
        """Publish what was captured and could not be uploaded."""
        for run_id, asked in self.unfinished().items():
            if asked.get("captured"):
                self.resume(run_id).appear()


def _check_place(warehouse: Path) -> None:
    """Refuse a path that DuckDB, which resolves its links, would take for something else."""
    for path in (str(warehouse), os.path.realpath(warehouse)):
        text = path.encode(errors="replace").decode()
        why = next((f"DuckDB reads no path with a {char}" for char in "?\\" if char in path), "")
        if why or text != path:
            raise AlabError(
                f"there can be no warehouse at {text}: {why or 'the path is not text in UTF-8'}",
                "Name another directory with --warehouse or $ALAB_WAREHOUSE.",
            )
