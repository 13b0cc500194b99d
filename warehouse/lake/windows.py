"""Rectangles of one tensor of one forward pass, read from the row groups that they lie in.

A tensor is a matrix here: a row for each token that was kept, a column for each dimension; of
attention one head's, a column for each key token.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from warehouse.lake.tensors import PassId, RowRange, Source
from warehouse.lake.vectors import VectorFile, join

#: Values of each row group that a percentile is taken of, evenly spread.
SAMPLE = 1 << 16


class Window:
    """One tensor of one pass, of which rectangles are read.

    Args:
        paths: the part files of its dataset and layer.
        column: its column there; `weights` is attention.
        at: prompt and step.

    Attributes:
        positions: position of each row's token, ascending.
        heads: heads that have rows of their own; 1 but for attention.
        width: columns.

    Raises:
        KeyError: the files have no such pass.
        OSError, ValueError: a file is damaged.
    """

    def __init__(self, paths: list[Path], column: str, at: PassId):
        if not paths:
            raise KeyError(at)
        source = _source(tuple(paths))
        _, last = source.span[at]
        self.heads = source.heads if column == "weights" else 1
        self.width: int = source.columns[column] or last + 1
        self._column = column
        self._files = [VectorFile(path, column) for path in paths]
        self._ranges = [some for some in source.ranges if some.at == at]
        self._places = [self._place(some) for some in self._ranges]
        self._latest: tuple[tuple[int, int], tuple[np.ndarray, np.ndarray]] | None = None
        self.positions: list[int] = np.unique([p for _, own in self._places for p in own]).tolist()

    def __len__(self) -> int:
        return len(self.positions)

    def _place(self, some: RowRange) -> tuple[np.ndarray, np.ndarray]:
        """Head and position of each row of a range."""
        names = ["position", *(["head"] if self._column == "weights" else [])]
        table = self._files[some.file].parquet.read_row_group(some.group, columns=names)
        own = table.slice(some.start, some.stop - some.start)
        positions = own["position"].to_numpy()
        return own["head"].to_numpy() if len(names) > 1 else 0 * positions, positions

    def rows(
        self, start: int, stop: int, head: int = 0, columns: slice = slice(None)
    ) -> np.ndarray:
        """Some rows and columns of a head, float32 (rows, columns).

        NaN stands where the model computed nothing, as logits of a prompt; of attention 0 for later
        keys.
        """
        wanted = np.array(self.positions[start:stop])
        out = np.zeros((len(wanted), len(range(*columns.indices(self.width)))), np.float32)
        for some, (heads, positions) in zip(self._ranges, self._places, strict=True):
            rows = np.flatnonzero((heads == head) & np.isin(positions, wanted))
            if len(rows):
                at = np.searchsorted(wanted, positions[rows])
                out[at] = self._join(some, rows + some.start, columns)
        return out

    def _join(self, some: RowRange, rows: np.ndarray, columns: slice) -> np.ndarray:
        """Some rows of a range's row group; only their bytes are put together."""
        streams, ends = self._group(some)
        if self._column != "weights":
            own = streams.reshape(4, len(ends) - 1, self.width)[:, rows, columns]
            out = np.empty(own.shape[1:], np.float32)
            join(own.reshape(4, -1), out.reshape(-1))
            return out
        first, last, _ = columns.indices(self.width)
        starts = np.minimum(ends[rows] + first, ends[rows + 1])
        stops = np.minimum(ends[rows] + last, ends[rows + 1])
        pairs = zip(starts, stops, strict=True)
        own = np.concatenate([streams[:, a:b] for a, b in pairs], axis=1)
        values = np.empty(own.shape[1], np.float32)
        join(own, values)
        out = np.zeros((len(rows), last - first), np.float32)
        out[np.arange(last - first) < (stops - starts)[:, None]] = values
        return out

    def _group(self, some: RowRange) -> tuple[np.ndarray, np.ndarray]:
        """A row group as bytes; bands of rows, and heads, share the one that was read last."""
        key = some.file, some.group
        if self._latest is None or self._latest[0] != key:
            self._latest = key, self._files[some.file].streams(some.group)
        return self._latest[1]

    def parts(self) -> Iterator[np.ndarray]:
        """All values, of every head, without the zeros of later keys; a row group at a time."""
        for some in self._ranges:
            streams, ends = self._group(some)
            own = streams[:, ends[some.start] : ends[some.stop]]
            values = np.empty(own.shape[1], np.float32)
            join(own, values)
            yield values


@lru_cache(maxsize=8)
def _source(paths: tuple[Path, ...]) -> Source:
    return Source(list(paths))


@lru_cache(maxsize=8)
def open_window(paths: tuple[Path, ...], column: str, at: PassId) -> Window:
    """A window that the next tile finds open: files never change, and looking takes its time."""
    return Window(list(paths), column, at)


# --- made smaller ---------------------------------------------------------------------------


def _extreme(blocks: np.ndarray, axis: int) -> np.ndarray:
    high, low = blocks.max(axis), blocks.min(axis)
    return np.where(high >= -low, high, low)


def _mean(blocks: np.ndarray, axis: int) -> np.ndarray:
    return blocks.mean(axis, dtype=np.float64).astype(np.float32)


def _first(blocks: np.ndarray, axis: int) -> np.ndarray:
    return blocks.take(0, axis)


#: What stands for a block of values: the one furthest from 0, their mean, or the first of them.
STATISTICS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "extreme": _extreme,
    "mean": _mean,
    "first": _first,
}


def smaller(values: np.ndarray, down: int, across: int, statistic: str) -> np.ndarray:
    """A matrix of which each value stands for a block of another's; blocks at the ends are smaller.

    A block with NaN is NaN.

    Args:
        values: (rows, columns).
        down: rows of a block.
        across: columns of a block.
        statistic: one of `STATISTICS`.

    >>> smaller(np.array([[1, -5, 2], [3, 4, 0]], np.float32), 2, 2, "extreme").tolist()
    [[-5.0, 2.0]]
    """
    work = STATISTICS[statistic]
    if down > 1:
        values = np.concatenate(
            [work(own.reshape(-1, size, own.shape[1]), 1) for own, size in _cut(values, down)]
        )
    if across > 1:
        parts = [(own.T, size) for own, size in _cut(values.T, across)]
        values = np.concatenate(
            [work(own.reshape(len(own), -1, size), 2) for own, size in parts], axis=1
        )
    return values


def _cut(values: np.ndarray, step: int) -> Iterator[tuple[np.ndarray, int]]:
    """The rows that make whole blocks, and the rest, each with the rows of a block."""
    whole = len(values) - len(values) % step
    if whole:
        yield values[:whole], step
    if whole < len(values):
        yield values[whole:], len(values) - whole


def limits(parts: Iterator[np.ndarray]) -> dict[str, float | int | None]:
    """The ends of a tensor's values, and how many of them are not finite.

    Returns:
        `low` and `high`; `inner`, below which 99.9% of the absolute values lie, of an even sample
        of those; `nonfinite`. None where there is no finite value.
    """
    low, high, lost = np.inf, -np.inf, 0
    sample = [np.empty(0, np.float32)]
    for values in parts:
        finite = np.isfinite(values)
        if not finite.all():
            lost += int((~finite).sum())
            values = values[finite]
        if len(values):
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            sample.append(np.abs(values[:: max(1, len(values) // SAMPLE)]))
    some = np.concatenate(sample)
    if not len(some):
        return {"low": None, "high": None, "inner": None, "nonfinite": lost}
    inner = float(np.quantile(some, 0.999))
    return {"low": low, "high": high, "inner": inner, "nonfinite": lost}
