"""Runs on their way into the lake, or being changed: everything appears whole or not at all."""

import json
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from warehouse.errors import AlabError
from warehouse.lake import manifest, store

if TYPE_CHECKING:
    import pyarrow as pa

    from warehouse.lake.metadata import MetadataWriter
    from warehouse.lake.remote import Remote
    from warehouse.lake.shared import SharedRun

#: More part files of a layer than a shard ever has.
PARTS = 1000
#: File of a staged run that can be gone on with: sweeps leave it alone.
REQUEST = "request.json"
#: File of a staged run that says by which version of its manifest a lake at a URL knows it.
CLAIM = "claim"


class StagedRun:
    """A run that is being written: invisible until `publish()`, gone after `discard()`.

    Args:
        root: the lake's folder.
        run_id: id of the run.
        lock: what keeps others from it; let go at the end.
        remote: the far side of a lake at a URL.

    Attributes:
        folder: where its files are written meanwhile, laid out like the lake.
        version: of a published run in a lake at a URL, its manifest's.
    """

    def __init__(self, root: Path, run_id: str, lock: FileLock, remote: "Remote | None" = None):
        self.version: str | None = None
        self._remote = remote
        self._is_kept = False
        self.run_id = run_id
        self.folder = root / ".staging" / run_id
        self._root = root
        self._lock = lock

    def path(self, dataset: str, *parts: str) -> Path:
        """Where a file of the run is written meanwhile."""
        return self.folder.joinpath(dataset, f"run={self.run_id}", *parts)

    def claim(self) -> bool:
        """Make its folder; at a URL, where nobody else has its id."""
        claim = self._remote.claim(self.run_id) if self._remote else None
        if self._remote and claim is None:
            return False
        self.folder.mkdir()
        if claim:
            (self.folder / CLAIM).write_text(claim, encoding="utf-8")
        return True

    @property
    def request(self) -> dict | None:
        """What a run that can be gone on with was asked for; None where it is none."""
        path = self.folder / REQUEST
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def ask(self, request: dict) -> None:
        """Make the run one that can be gone on with: a kill leaves what was finished of it."""
        store.write(self.folder / REQUEST, json.dumps(request).encode())

    @property
    def shared(self) -> "SharedRun | None":
        """What other machines know of its shards; None of a run whose shards are all here."""
        request = self.request if self._remote else None
        if self._remote is None or request is None or "shards" not in request:
            return None
        from warehouse.lake.shared import SharedRun  # with what it takes, only at a URL

        return SharedRun(self._remote, self.run_id, self.folder, request["claim"])

    def share(self, request: dict | None) -> bool:
        """Work, at a URL, on a run that others work on too, begun where nobody has begun it.

        Args:
            request: what it is begun with; None to go on with it only.

        Returns:
            Whether there is something to work on: it is begun, and not published.

        Raises:
            TimeoutError: what is here is of a run that was deleted, and a process is still at it.
        """
        assert self._remote is not None  # elsewhere all see one folder
        if (begun := self._remote.share(self.run_id, request)) is None:
            return False
        own = self.folder / CLAIM
        if not own.is_file() or own.read_text(encoding="utf-8") != begun[1]:
            self.take_parts()
            store.delete(self.folder)  # of a run that was deleted, or killed before it had begun
            self.folder.mkdir(parents=True)
            self.ask(begun[0])
            own.write_text(begun[1], encoding="utf-8")
        return True

    @property
    def is_lost(self) -> bool:
        """Whether it is read in shards, and another machine has deleted it."""
        remote, shared = self._remote, self.shared
        if remote is None or shared is None:
            return False
        for index in (remote.known, remote.pull):
            if index()["begun"].get(self.run_id, {}).get("claim") == shared.claim:
                return False
        return remote.claimed_as(self.run_id) != shared.claim

    def take_parts(self) -> None:
        """Take every part of the run from others; TimeoutError where a process has one.

        Nobody takes one anew while the run is ours.
        """
        for path in store.paths(self.folder, "shards/*.lock"):
            store.unlock(store.lock(path))

    def collect(self, numbers: Iterable[int]) -> None:
        """Have here what others have finished of some shards, and give them what is only here."""
        if shared := self.shared:
            shared.collect(numbers)

    def recall(self) -> None:
        """Take back what a publishing that was killed had moved into the lake already."""
        for folder in store.paths(self._root, f"[!.]*/run={self.run_id}"):
            dataset = folder.parent.name
            if not self.path(dataset).exists():
                store.move(folder, self.path(dataset))

    def publish(self, metadata: "MetadataWriter") -> None:
        """Make the run exist: finish its metadata and move everything into the lake, metadata last.

        Args:
            metadata: the run's metadata, whose rows are all there but those of `files`.
        """
        shared = self.shared
        paths = [
            path if shared is None else _named_once(path)
            for path in store.paths(self.folder, "**/*.parquet")
            if not path.is_relative_to(self.path("metadata"))
            and not path.is_relative_to(self.folder / "shards")
        ]
        files = [manifest.file_row(self.run_id, path, self.folder) for path in paths]
        metadata.close(files + (shared.rows() if shared else []))
        self.appear()

    def appear(self) -> None:
        """Move a run whose metadata are finished into the lake.

        Raises:
            AlabError: it could not be uploaded, and is kept.
        """
        if self._remote and self.shared:
            self._upload_shared(self._remote, self.shared)
        elif self._remote:
            self._upload(self._remote)
        else:
            folders = store.paths(self.folder, f"*/run={self.run_id}")
            datasets = [path.parent.name for path in folders]
            for dataset in sorted(datasets, key=lambda name: name == "metadata"):
                store.move(self.path(dataset), self._home(dataset))
        self._close()

    def _upload(self, remote: "Remote") -> None:
        """Publish at a URL, data before the manifest; what can't be uploaded now is kept."""
        files = manifest.read(self.path("metadata")).to_pylist()
        data = [self.folder / row["path"] for row in files if row["dataset"] != "metadata"]
        try:
            claim = remote.renew(self.run_id, (self.folder / CLAIM).read_text(encoding="utf-8"))
            if claim:
                (self.folder / CLAIM).write_text(claim, encoding="utf-8")
                remote.upload(self.folder, data)
            remote.publish(self.run_id, self.path("metadata"), claim)
        except AlabError as error:
            (run,) = manifest.read(self.path("metadata"), "runs").to_pylist()
            asked = {"scenario": {"name": run["scenario"]}, "began": str(run["created_at"])}
            prompts = manifest.read(self.path("metadata"), "prompts").num_rows
            self.ask({**asked, "prompts": prompts, **(self.request or {}), "captured": True})
            self._is_kept = True
            raise AlabError(
                f"{self.run_id} is captured, but not published: {error.message}",
                f"It is kept on this machine. {error.hint} Then publish it: alab check --fix",
            ) from error

    def _upload_shared(self, remote: "Remote", shared: "SharedRun") -> None:
        """Publish what is read in shards, whose data are there; who comes second leaves nothing."""
        files = manifest.read(self.path("metadata")).to_pylist()
        named = {row["path"] for row in files if row["dataset"] != "metadata"}
        named -= {row["path"] for row in shared.rows()}
        remote.upload(self.folder, (self.folder / path for path in sorted(named)))
        claim = (self.folder / CLAIM).read_text(encoding="utf-8")  # which is never swept
        remote.publish(self.run_id, self.path("metadata"), claim)
        own = {f"lake/{path}" for path in named}
        remote.objects.delete(own - (remote.names(self.run_id) or own))
        shared.tidy()

    def add(self, path: Path) -> dict:
        """Put a new file into a published run, which `amend` has to name; gives its row of `files`.

        Objects are never replaced: at a URL it has a name of its own.
        """
        if self._remote is None:
            row = manifest.file_row(self.run_id, path, self.folder)
            store.move(path, self._root / row["path"])
            return row
        own = _named_once(path)
        self._remote.upload(self.folder, [own])
        return manifest.file_row(self.run_id, own, self.folder)

    def amend(self, metadata: "dict[str, pa.Table]") -> None:
        """Replace metadata tables of a published run, all of them or none.

        Args:
            metadata: the new tables, `files` and `runs` among them. Rows of `files` about metadata
                are renewed. A dataset that `files` does not name is deleted.
        """
        from warehouse.lake.metadata import write_metadata

        draft = self.folder / "draft" / "metadata" / f"run={self.run_id}"
        store.copy(self._home("metadata"), draft)
        files = [row for row in metadata["files"].to_pylist() if row["dataset"] != "metadata"]
        write_metadata(draft, metadata, files)
        if self._remote:
            self._remote.amend(self.run_id, draft, self.version)
        # From here on, `discard` finishes what is left to do.
        store.move(draft.parent, self.folder / "metadata")

    def discard(self) -> None:
        """Leave the run as it was last published or amended, or gone where it never was."""
        if self._is_kept:
            self.release()
            return
        is_shared, claim = self.shared is not None, self.folder / CLAIM
        if self._remote and is_shared:
            try:  # whatever any machine has sent of it
                own = claim.read_text(encoding="utf-8") if claim.is_file() else ""
                self._remote.withdraw(self.run_id, own, self._remote.of_run(self.run_id))
            except BaseException:
                self.release()
                raise
        store.delete(self.folder / REQUEST)  # first: nobody goes on with a half of it
        home = self._home("metadata")
        if self._remote and not is_shared and claim.is_file():
            paths = store.paths(self.folder, "*/run=*/**/*.*")
            names = [f"lake/{path.relative_to(self.folder).as_posix()}" for path in paths]
            with suppress(AlabError):  # else `alab check --fix` finds what is left there
                self._remote.withdraw(self.run_id, claim.read_text(encoding="utf-8"), names)
        if (published := home.exists()) and not is_shared:
            for path in store.paths(self.path("metadata"), "*.parquet"):
                store.move(path, home / path.name)
        files = manifest.sound(home) if published else None
        if files is not None or not published:  # where metadata is damaged, nothing more is lost
            named = {"metadata", *files["dataset"].to_pylist()} if files is not None else set()
            for folder in store.paths(self._root, f"[!.]*/run={self.run_id}"):
                if folder.parent.name not in named:
                    store.delete(folder)
        self._close()

    def _home(self, dataset: str) -> Path:
        return self._root / dataset / f"run={self.run_id}"

    def release(self) -> None:
        """Let others have the run; what is staged of it stays."""
        store.unlock(self._lock)

    def _close(self) -> None:
        try:
            store.delete(self.folder / REQUEST)
            store.delete(self.folder)
        finally:
            self.release()


def _named_once(path: Path) -> Path:
    """Rename a file, so that no other object of any machine has its name."""
    return path.rename(path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"))


class Shard:
    """A part of a staged run that is there whole or not at all: a killed capture goes on after it.

    Args:
        staged: the run.
        number: place of the part in it.

    Attributes:
        run_id: id of the run.
    """

    def __init__(self, staged: StagedRun, number: int):
        self.run_id = staged.run_id
        self.number = number
        self._staged = staged
        self.folder = staged.folder / "shards" / f"{number:05d}"
        self._draft = self.folder.with_name(f".{number:05d}")

    @property
    def is_there(self) -> bool:
        """Whether it was finished."""
        return self.folder.is_dir()

    def path(self, dataset: str, *parts: str) -> Path:
        """Where a file of the shard is written meanwhile."""
        return self._draft.joinpath(dataset, f"run={self.run_id}", *parts)

    def begin(self) -> None:
        """Forget what was written of it before."""
        store.delete(self._draft)

    def finish(self, record: bytes) -> None:
        """Make it a part of the run, with a record of what it was like."""
        with store.create(self._draft / "record.json") as file:
            store.append(file, [record])
        store.move(self._draft, self.folder)
        if shared := self._staged.shared:
            shared.send(self.number)

    def record(self) -> bytes:
        """The record that it was finished with."""
        return (self.folder / "record.json").read_bytes()

    def metadata(self, table: str) -> Path:
        """Its file of a metadata table."""
        return self.folder / "metadata" / f"run={self.run_id}" / f"{table}.parquet"

    def gather(self) -> None:
        """Put its part files among those of the run; does nothing where that was done before."""
        for path in store.paths(self.folder, "*/run=*/**/*.parquet"):
            dataset = path.relative_to(self.folder).parts[0]
            if dataset != "metadata":
                part = int(path.stem.removeprefix("part-"))
                name = f"part-{self.number * PARTS + part}.parquet"
                own = path.relative_to(self.folder / dataset / f"run={self.run_id}")
                store.move(path, self._staged.path(dataset, *own.parent.parts, name))
