"""Writes tensors to Parquet beside the forward passes: one thread, a bounded queue, constant memory."""

import threading
from collections import deque

import numpy as np
import torch

from warehouse import lake
from warehouse.rowgroups import GROUP_ROWS, GROUP_VALUES, AttentionFile, RowFile, Rows, Scratch, Stats

#: Bytes of decode rows, over all layers, that may wait for their row group to fill.
PENDING_BYTES = 128 << 20
#: Bytes of tensors that may wait for the writer; a pass that is faster waits for it.
QUEUE_BYTES = 64 << 20


class TensorWriter:
    """Takes the tensors of a run and writes them to its staging folder from a thread of its own.

    Use it as a context manager: leaving it waits until everything is written, or, after an exception, stops at once.

    Args:
        staged: the run being written.
        widths: per layer (None for embeddings and logits) the width of each site that will come.
        store_dtype: precision to round values to: float32, float16 or bfloat16. A value outside its range is
            kept unrounded and counted.
    """

    def __init__(self, staged: lake.StagedRun, widths: dict[int | None, dict[str, int]], store_dtype: str):
        self.stats = Stats()
        self._staged = staged
        self._scratch = Scratch(store_dtype)
        self._files: dict[tuple[str, int | None], RowFile | AttentionFile] = {}
        self._widths = widths
        self._places: dict[tuple, np.ndarray] = {}  # of the causal half, shared by the layers
        self._queue: deque[Rows | None] = deque()
        self._waiting = 0
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="alab-writer", daemon=True)

    def __enter__(self) -> "TensorWriter":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        with self._change:
            if kind is not None:
                self._queue.clear()
            self._queue.append(None)
            self._change.notify_all()
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, rows: Rows) -> None:
        """Hand over tensors; waits while too much is under way.

        Raises:
            OSError: writing failed, for example because the disk is full.
        """
        size = rows.nbytes
        with self._change:
            while self._waiting and self._waiting + size > QUEUE_BYTES and self._error is None:
                self._change.wait()
            self._raise()
            self._waiting += size
            self._queue.append(rows)
            self._change.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        torch.set_num_threads(1)  # of this thread; the model keeps its own
        try:
            with torch.inference_mode():
                while (rows := self._next()) is not None:
                    size = rows.nbytes
                    if rows.ready is not None:
                        rows.ready.synchronize()
                    self._write(rows)
                    del rows
                    with self._change:
                        self._waiting -= size
                        self._change.notify_all()
                for file in self._files.values():
                    file.close()
        except BaseException as error:  # handed to the thread that puts
            with self._change:
                self._error = error
                self._queue.clear()
                self._change.notify_all()
            for file in self._files.values():
                file.parts.abandon()

    def _next(self) -> Rows | None:
        with self._change:
            while not self._queue:
                self._change.wait()
            return self._queue.popleft()

    def _write(self, rows: Rows) -> None:
        if rows.sites:
            self._file("outputs" if rows.layer is None else "activations", rows.layer).add(rows)
        if rows.attention is not None:
            self._file("attention", rows.layer).add(rows)

    def _group(self, layer: int | None) -> int:
        """Rows in a row group: fewer for a wide model, since each layer keeps up to a group of decode rows."""
        if layer is None:
            return max(1, min(GROUP_ROWS, GROUP_VALUES // max(self._widths[None].values())))
        a_token = 4 * sum(sum(sites.values()) for key, sites in self._widths.items() if key is not None)
        return max(16, min(GROUP_ROWS, PENDING_BYTES // a_token))

    def _file(self, dataset: str, layer: int | None) -> "RowFile | AttentionFile":
        key = dataset, layer
        if key not in self._files:
            if dataset == "attention":
                self._files[key] = AttentionFile(self._staged, layer, self._scratch, self.stats, self._places)
            else:
                widths, group = self._widths[layer], self._group(layer)
                self._files[key] = RowFile(self._staged, layer, widths, group, self._scratch, self.stats)
        return self._files[key]
