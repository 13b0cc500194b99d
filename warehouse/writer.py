"""Writes tensors to Parquet beside the forward passes: a few threads, a bounded queue, constant memory."""

import contextlib
import os
import sys
import threading
from collections import deque

import torch

from warehouse import lake
from warehouse.rowgroups import GROUP_ROWS, GROUP_VALUES, AttentionFile, RowFile, Rows, Scratch, Stats

#: Bytes of decode rows, over all layers, that may wait for their row group to fill.
PENDING_BYTES = 128 << 20
#: Bytes of tensors that may wait to be written; a pass that is faster waits for the writer.
QUEUE_BYTES = 64 << 20
#: Bytes of tensors that are handed to the threads together: to wake one costs more than a small layer.
BATCH_BYTES = 2 << 20
#: Threads that write; each has the layers of its own turn, so that no file has two.
THREADS = 2
#: How far the threads step back for the model, as `nice` counts.
NICE = 15


class TensorWriter:
    """Takes the tensors of a run and writes them to its staging folder from threads of its own.

    Use it as a context manager: leaving it waits until everything is written, or, after an exception, stops at once.

    Args:
        staged: the run being written.
        widths: per layer (None for embeddings and logits) the width of each site that will come.
        store_dtype: precision to round values to: float32, float16 or bfloat16. A value outside its range is
            kept unrounded and counted.
    """

    def __init__(self, staged: lake.StagedRun, widths: dict[int | None, dict[str, int]], store_dtype: str):
        self.stats = Stats()
        self._batch: list[Rows] = []
        self._batch_bytes = 0
        self._waiting = 0  # bytes handed over and not yet written
        lock = threading.Lock()
        self._filled, self._freed = threading.Condition(lock), threading.Condition(lock)
        self._error: BaseException | None = None
        self._queues: list[deque[Rows | None]] = [deque() for _ in range(THREADS)]
        self._threads = [
            threading.Thread(
                target=self._work, args=(queue, _Files(staged, widths, store_dtype, self.stats)),
                name="alab-writer", daemon=True,
            )
            for queue in self._queues
        ]  # fmt: skip

    def __enter__(self) -> "TensorWriter":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None:
            self._hand_over()
        with self._filled:
            for queue in self._queues:
                if kind is not None:
                    queue.clear()
                queue.append(None)
            self._filled.notify_all()
        for thread in self._threads:
            thread.join()
        if kind is None:
            self._raise()

    def put(self, rows: Rows) -> None:
        """Take tensors; waits while too much is under way.

        Raises:
            OSError: writing failed, for example because the disk is full.
        """
        self._batch.append(rows)
        self._batch_bytes += rows.nbytes
        if self._batch_bytes >= BATCH_BYTES:
            self._hand_over()
            self._raise()

    def _hand_over(self) -> None:
        batch, size = self._batch, self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        with self._freed:
            while self._waiting and self._waiting + size > QUEUE_BYTES and self._error is None:
                self._freed.wait()
            if self._error is None:
                self._waiting += size
                for rows in batch:
                    self._queues[0 if rows.layer is None else rows.layer % THREADS].append(rows)
                self._filled.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self, queue: "deque[Rows | None]", files: "_Files") -> None:
        _step_back()
        try:
            with torch.inference_mode():
                while (rows := self._next(queue)) is not None:
                    size = rows.nbytes
                    if rows.ready is not None:
                        rows.ready.synchronize()
                    files.add(rows)
                    del rows
                    with self._freed:
                        self._waiting -= size
                        self._freed.notify()
                files.close()
        except BaseException as error:  # handed to the thread that puts
            with self._filled:
                self._error = self._error or error
                for waiting in self._queues:
                    waiting.clear()
                    waiting.append(None)
                self._filled.notify_all()
                self._freed.notify()
            files.abandon()

    def _next(self, queue: "deque[Rows | None]") -> Rows | None:
        with self._filled:
            while not queue:
                self._filled.wait()
            return queue.popleft()


class _Files:
    """The open part files of some layers, and the buffers that they share; for one thread."""

    def __init__(
        self, staged: lake.StagedRun, widths: dict[int | None, dict[str, int]], store_dtype: str, stats: Stats
    ):
        self._staged = staged
        self._widths = widths
        self._stats = stats
        self._scratch = Scratch(store_dtype)
        self._files: dict[tuple[str, int | None], RowFile | AttentionFile] = {}

    def add(self, rows: Rows) -> None:
        """Write rows, or keep them until their row group is full."""
        if rows.sites:
            self._file("outputs" if rows.layer is None else "activations", rows.layer).add(rows)
        if rows.attention is not None:
            self._file("attention", rows.layer).add(rows)

    def close(self) -> None:
        """Write what is left and finish the files."""
        for file in self._files.values():
            file.close()

    def abandon(self) -> None:
        """Let go of the files after an error."""
        for file in self._files.values():
            file.parts.abandon()

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
                self._files[key] = AttentionFile(self._staged, layer, self._scratch, self._stats)
            else:
                widths, group = self._widths[layer], self._group(layer)
                self._files[key] = RowFile(self._staged, layer, widths, group, self._scratch, self._stats)
        return self._files[key]


def _step_back() -> None:
    """Let the model go first on this thread's core, and count as one thread where torch is asked to work."""
    torch.set_num_threads(1)  # of this thread; the model keeps its own
    if sys.platform == "linux":  # elsewhere it would slow the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
