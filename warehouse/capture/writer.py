"""Writes tensors to Parquet beside the passes: a few threads, a bounded queue, constant memory."""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from warehouse.capture.columns import Files, Scratch
from warehouse.capture.rounding import Stats
from warehouse.capture.rowgroups import AttentionGroup, Gather, RowGroup, Rows
from warehouse.lake.staging import Shard, StagedRun

#: Bytes of tensors that may wait to be written; a pass that is faster waits for the writer. Most of
#: a prefill may wait: its passes need every core, and decode steps, which wait for memory, leave
#: one to the writer.
QUEUE_BYTES = 384 << 20
#: Bytes of tensors that may be on their way from a device.
COPYING_BYTES = 64 << 20
#: Threads that write, at the most; one for every two that torch uses.
MOST_THREADS = 8
#: How much they give way to the model's threads, as in `nice`.
NICENESS = 15


def give_way() -> None:
    """Keep the calling thread to one core, and to what other threads leave of it."""
    torch.get_num_threads()  # a thread's first use of torch takes over the process's setting: now
    torch.set_num_threads(1)
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with suppress(OSError):
            niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


@contextmanager
def leave_a_core() -> Iterator[None]:
    """Run torch on one thread less, for passes over one token: they wait for memory, not cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class TensorWriter:
    """Takes the tensors of a run and writes them to its staging folder from threads of its own.

    Use it as a context manager: leaving it waits until everything is written, or, after an
    exception, stops at once.

    Args:
        staged: the run being written.
        widths: per layer (None for embeddings and logits) the width of each site that will come.
        store_dtype: precision to round values to: float32, float16 or bfloat16. A value outside its
            range is kept unrounded and counted.
    """

    def __init__(
        self, staged: StagedRun | Shard, widths: dict[int | None, dict[str, int]], store_dtype: str
    ):
        self._gather = Gather(widths, store_dtype)
        self._files = Files(staged, widths)
        self._copying: deque[Rows] = deque()  # still on their way from the device
        self._queue: deque[RowGroup | AttentionGroup] = deque()
        self._busy: set[tuple[str, int | None]] = set()  # files that a thread is writing to
        self._waiting = 0  # bytes handed over and not yet written
        self._closing = False
        self._error: BaseException | None = None
        lock = threading.Lock()
        self._filled, self._freed = threading.Condition(lock), threading.Condition(lock)
        count = min(MOST_THREADS, max(1, torch.get_num_threads() // 2))
        self._threads = [
            threading.Thread(target=self._work, name="alab-writer", daemon=True)
            for _ in range(count)
        ]

    @property
    def stats(self) -> Stats:
        """What the values were like."""
        return self._gather.stats

    def __enter__(self) -> "TensorWriter":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        try:
            if kind is None:
                self.flush()
                self._join()
                self._raise()
                self._files.close()
        finally:
            with self._filled:
                self._queue.clear()  # what is left after an exception is not written
            self._join()
            self._files.abandon()
            # So that new threads begin with it, not with our 1.
            torch.set_num_threads(torch.get_num_threads())

    def put(self, rows: Rows) -> None:
        """Take tensors; waits while too much is under way.

        Raises:
            OSError: writing failed, for example because the disk is full.
        """
        self._copying.append(rows)
        while self._copying and self._there(self._copying[0]):
            self._take(self._copying.popleft())
        self._raise()

    def flush(self) -> None:
        """Hand over what waits for its row group to fill; for when no more rows come."""
        for rows in self._copying:
            if rows.ready is not None:
                rows.ready.synchronize()
            self._take(rows)
        self._copying.clear()
        for group in self._gather.rest():
            self._hand_over(group)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _there(self, rows: Rows) -> bool:
        """Whether tensors have come from the device; waits where too many are under way."""
        if rows.ready is None or rows.ready.query():
            return True
        if sum(rows.nbytes for rows in self._copying) <= COPYING_BYTES:
            return False
        rows.ready.synchronize()
        return True

    def _take(self, rows: Rows) -> None:
        for group in self._gather.take(rows):
            self._hand_over(group)

    def _join(self) -> None:
        """Wait until the threads have written what is in the queue."""
        with self._filled:
            self._closing = True
            self._filled.notify_all()
        for thread in self._threads:
            thread.join()

    def _hand_over(self, group: RowGroup | AttentionGroup) -> None:
        size = group.nbytes
        with self._freed:
            while self._waiting and self._waiting + size > QUEUE_BYTES and self._error is None:
                self._freed.wait()
            if self._error is None:
                self._waiting += size
                self._queue.append(group)
                self._filled.notify()

    def _work(self) -> None:
        """Write row groups until there are no more; runs in each thread."""
        try:
            give_way()
            scratch = Scratch()
            with torch.inference_mode():
                while (group := self._next()) is not None:
                    self._files.write(group, scratch)
                    size, file = group.nbytes, group.file
                    del group
                    with self._freed:
                        self._busy.discard(file)
                        self._waiting -= size
                        self._freed.notify()
                        self._filled.notify()
        except BaseException as error:  # handed to the thread that puts
            with self._filled:
                self._error = self._error or error
                self._closing = True
                self._queue.clear()
                self._filled.notify_all()
                self._freed.notify()

    def _next(self) -> RowGroup | AttentionGroup | None:
        """The first row group whose file no other thread is writing to; None when all is done."""
        with self._filled:
            while self._queue or not self._closing:
                for index, group in enumerate(self._queue):
                    if group.file not in self._busy:
                        del self._queue[index]
                        self._busy.add(group.file)
                        return group
                self._filled.wait()
            self._filled.notify()
            return None
