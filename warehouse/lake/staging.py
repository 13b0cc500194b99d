"""Runs on their way into the lake, or being changed: everything appears whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from warehouse.lake import manifest, store

if TYPE_CHECKING:
    import pyarrow as pa

    from warehouse.lake.metadata import MetadataWriter


class StagedRun:
    """A run that is being written: invisible until `publish()`, gone after `discard()`.

    Args:
        root: the lake's folder.
        run_id: id of the run.
        lock: what keeps others from it; let go at the end.

    Attributes:
        folder: where its files are written meanwhile, laid out like the lake.
    """

    def __init__(self, root: Path, run_id: str, lock: FileLock):
        self.run_id = run_id
        self.folder = root / ".staging" / run_id
        self._root = root
        self._lock = lock

    def path(self, dataset: str, *parts: str) -> Path:
        """Where a file of the run is written meanwhile."""
        return self.folder.joinpath(dataset, f"run={self.run_id}", *parts)

    def publish(self, metadata: "MetadataWriter") -> None:
        """Make the run exist: finish its metadata and move everything into the lake, metadata last.

        Args:
            metadata: the run's metadata, whose rows are all there but those of `files`.
        """
        files = [
            manifest.file_row(self.run_id, path, self.folder)
            for path in store.paths(self.folder, "**/*.parquet")
            if not path.is_relative_to(self.path("metadata"))
        ]
        metadata.close(files)
        datasets = [path.parent.name for path in store.paths(self.folder, f"*/run={self.run_id}")]
        for dataset in sorted(datasets, key=lambda name: name == "metadata"):
            store.move(self.path(dataset), self._home(dataset))
        self._close()

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
        # From here on, `discard` finishes what is left to do.
        store.move(draft.parent, self.folder / "metadata")

    def discard(self) -> None:
        """Leave the run as it was last published or amended, or gone where it never was."""
        home = self._home("metadata")
        if published := home.exists():
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
        store.delete(self.folder)
        self.release()
