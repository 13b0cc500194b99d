"""Writes the metadata tables of a run as their rows come, so that memory stays flat."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.lake import store
from warehouse.lake.manifest import DIGEST, digest, file_row
from warehouse.lake.staging import Shard, StagedRun

#: Rows of a table that are in memory at once.
GROUP_ROWS = 1 << 10


class MetadataWriter:
    """The metadata tables of one run; each has its file in the end, also where it has no rows.

    Args:
        staged: the run, which `StagedRun.publish` makes visible.
        schemas: schema of each table, `runs` and `files` among them; those two are written last.
        rows: rows that are known already.
    """

    def __init__(
        self,
        staged: StagedRun | Shard,
        schemas: Mapping[str, pa.Schema],
        rows: Mapping[str, Iterable[dict[str, Any]]] | None = None,
    ):
        self._run = {"run_id": staged.run_id}
        self._folder = staged.path("metadata")
        self._schemas = schemas
        self._rows: dict[str, list[dict]] = {table: [] for table in schemas}
        self._files: dict[str, pq.ParquetWriter] = {}
        for table, some in (rows or {}).items():
            self.add(table, some)

    def add(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows, without the run's id; what a row lacks is NULL."""
        waiting = self._rows[table]
        waiting += (row | self._run for row in rows)
        if len(waiting) >= GROUP_ROWS and table not in ("runs", "files"):
            self._write(table)

    def append(self, table: str, rows: pa.Table) -> None:
        """Write rows that another writer has written before."""
        self._write(table)
        self._files[table].write_table(rows)

    def finish(self) -> None:
        """Finish the tables but for `runs` and `files`."""
        for table in self._schemas.keys() - {"runs", "files"}:
            self._write(table)
            self._files[table].close()

    def close(self, files: list[dict]) -> None:
        """Finish the tables, then `runs`, then `files`.

        Args:
            files: rows of `files` for everything but metadata.
        """
        self.finish()
        write_metadata(self._folder, {name: self._table(name) for name in ("runs", "files")}, files)

    def abandon(self) -> None:
        """Let go of the files after an error."""
        for file in self._files.values():
            with suppress(Exception):  # a disk that is full, most likely, which was said already
                file.close()

    def _table(self, name: str) -> pa.Table:
        return pa.Table.from_pylist(self._rows[name], self._schemas[name])

    def _write(self, name: str) -> None:
        """Write the rows of a table that wait, the first time even where there are none."""
        if name not in self._files:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{name}.parquet"
            self._files[name] = pq.ParquetWriter(path, self._schemas[name], compression="zstd")
        if self._rows[name]:
            self._files[name].write_table(self._table(name))
            self._rows[name].clear()


def write_metadata(folder: Path, metadata: dict[str, pa.Table], files: list[dict]) -> None:
    """Write metadata tables of a run into its folder `metadata/run=<run_id>`.

    Args:
        folder: the folder; tables that it has already and that `metadata` has not stay.
        metadata: the tables, `runs` and `files` among them; the size of the run and the rows of
            `files` are filled in here.
        files: rows of `files` for everything but metadata.
    """
    runs = metadata["runs"]
    at = runs.schema.get_field_index("bytes")
    size = pa.array([sum(row["n_bytes"] for row in files)], pa.int64())
    metadata = metadata | {"runs": runs.set_column(at, runs.schema.field(at), size)}
    folder.mkdir(parents=True, exist_ok=True)
    for name in metadata.keys() - {"files"}:
        pq.write_table(metadata[name], folder / f"{name}.parquet", compression="zstd")
    run_id = folder.name.removeprefix("run=")
    paths = [path for path in store.paths(folder, "*.parquet") if path.stem != "files"]
    rows = files + [file_row(run_id, path, folder.parents[1]) for path in paths]
    table = pa.Table.from_pylist(rows, metadata["files"].schema)
    table = table.replace_schema_metadata({DIGEST: digest(table.to_pylist())})
    pq.write_table(table, folder / "files.parquet", compression="zstd")
