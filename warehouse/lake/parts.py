"""Part files of the datasets that hold every token of every pass."""

import contextlib
from collections.abc import Mapping
from typing import Any

from warehouse.lake import store
from warehouse.lake.pages import PageWriter
from warehouse.lake.schemas import tensor_schema
from warehouse.lake.staging import Shard, StagedRun

#: A part file that has grown past this is closed, and another begun.
PART_BYTES = 256 << 20


class Parts:
    """The part files of one layer in one dataset; named by their steps once those are known.

    Args:
        staged: the run being written.
        layer: None for embeddings and logits.
        widths: width of each site that will come.
    """

    def __init__(
        self, staged: StagedRun | Shard, dataset: str, layer: int | None, widths: Mapping[str, int]
    ):
        self._staged = staged
        self._dataset = dataset
        self._schema = tensor_schema(dataset, widths)
        self._folder = [] if layer is None else [f"layer={layer:02d}"]
        self._number = 0
        self._steps: list[int] = []
        self._writer: PageWriter | None = None

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.abandon()

    def write(self, columns: dict[str, Any]) -> None:
        """Append one row group; `columns` as `PageWriter.write` takes them."""
        if self._writer is None:
            draft = f".part-{self._number}.parquet"
            self._draft = self._staged.path(self._dataset, *self._folder, draft)
            self._writer = PageWriter(self._draft, self._schema)
            self._steps = []
        self._writer.write(len(columns["step"]), columns)
        self._steps += [int(columns["step"].min()), int(columns["step"].max())]
        if self._writer.size > PART_BYTES:
            self.close()

    def close(self) -> None:
        """Finish the current part and move it to the folder of its steps."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        steps, name = f"steps={min(self._steps)}-{max(self._steps)}", f"part-{self._number}.parquet"
        store.move(self._draft, self._staged.path(self._dataset, steps, *self._folder, name))
        with contextlib.suppress(OSError):
            self._draft.parent.rmdir()
        self._number += 1

    def abandon(self) -> None:
        """Let go of the file after an error."""
        if self._writer is not None:
            self._writer.abandon()
