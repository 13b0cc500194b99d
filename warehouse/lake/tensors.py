"""Tensors read back from part files, a block of rows at a time.

A captured run and an imported one store the same rows in different orders; here they come in one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.lake import store

if TYPE_CHECKING:
    from warehouse.lake.objects import ObjectFile

#: Values that are in memory at once.
BLOCK = 1 << 22
#: Attention weights of one pass that are in memory at once, several heads whole.
HEAD_VALUES = 1 << 25

#: (prompt_id, step) of a forward pass.
PassId = tuple[int, int]


@dataclass
class RowRange:
    """Consecutive rows of one pass in one row group."""

    at: PassId
    file: int
    group: int
    start: int
    stop: int


class Source:
    """The part files of a dataset and layer, and where in them each pass is.

    Attributes:
        open: the files.
        ranges: rows of each pass, in the order they are stored.
        span: first and last position of each pass.
        count: number of rows of each pass.
        heads: rows that each position of a pass has.
    """

    def __init__(self, files: "Sequence[Path | ObjectFile]"):
        self.open = [store.parquet(path) for path in files]
        self.ranges: list[RowRange] = []
        self.span: dict[PassId, tuple[int, int]] = {}
        self.count: dict[PassId, int] = {}
        self.heads = 1
        self._latest: tuple[tuple, pa.Table] | None = None
        for number, file in enumerate(self.open):
            for group in range(file.num_row_groups):
                self._index(number, group)

    def _index(self, number: int, group: int) -> None:
        columns = ["prompt_id", "step", "position", "head"]  # the last of attention alone
        table = self.open[number].read_row_group(group, columns=columns)
        prompts, steps, positions = (table[name].to_numpy() for name in columns[:3])
        if "head" in table.column_names and len(table):
            self.heads = max(self.heads, int(table["head"].to_numpy().max()) + 1)
        edges = np.flatnonzero((np.diff(prompts) != 0) | (np.diff(steps) != 0)) + 1
        for start, stop in zip([0, *edges], [*edges, len(steps)], strict=True):
            at = int(prompts[start]), int(steps[start])
            self.ranges.append(RowRange(at, number, group, start, stop))
            low, high = int(positions[start:stop].min()), int(positions[start:stop].max())
            before = self.span.get(at, (low, high))
            self.span[at] = min(before[0], low), max(before[1], high)
            self.count[at] = self.count.get(at, 0) + int(stop - start)

    @cached_property
    def columns(self) -> dict[str, int | None]:
        """Width of each vector column that has values; None where it differs from row to row."""
        fields = [f for f in self.open[0].schema_arrow if pa.types.is_nested(f.type)]
        widths = {f.name: getattr(f.type, "list_size", None) for f in fields}
        return {name: width for name, width in widths.items() if width or name == "weights"}

    def positions(self, at: PassId) -> list[int]:
        """Positions of the rows of a pass, in the order they are stored."""
        mine = (some for some in self.ranges if some.at == at)
        return [n for some in mine for n in self._rows(some, ["position"])["position"].to_pylist()]

    def read(self, column: str, passes: set[PassId]) -> Iterator[tuple[PassId, pa.Array]]:
        """The values of a column, some rows of a pass at a time.

        They come by position; attention by head and then position.
        """
        ranges = [some for some in self.ranges if some.at in passes]
        if column == "weights":
            for at, own in groupby(ranges, key=lambda some: some.at):
                yield from ((at, rows) for rows in self._by_head(at, list(own)))
            return
        for some in ranges:
            yield some.at, self._rows(some, [column]).column(0).combine_chunks()

    def _by_head(self, at: PassId, ranges: list[RowRange]) -> Iterator[pa.Array]:
        """The attention weights of a pass, as many heads at a time as fit in memory.

        A capture writes them by position and then head, an import by head and then position.
        """
        first, last = self.span[at]
        several = max(1, HEAD_VALUES // ((last - first + 1) * (last + 1)))
        for start in range(0, self.heads, several):
            chosen = (pc.field("head") >= start) & (pc.field("head") < start + several)
            columns = ["weights", "head", "position"]
            table = pa.concat_tables(self._rows(some, columns).filter(chosen) for some in ranges)
            order = np.lexsort((table["position"].to_numpy(), table["head"].to_numpy()))
            yield table["weights"].combine_chunks().take(pa.array(order))

    def _rows(self, some: RowRange, columns: list[str]) -> pa.Table:
        """Some columns of a range; passes that are read one by one often share a row group."""
        key = some.file, some.group, *columns
        if self._latest is None or self._latest[0] != key:
            self._latest = key, self.open[some.file].read_row_group(some.group, columns=columns)
        return self._latest[1].slice(some.start, some.stop - some.start)

    def tensor(self, column: str, at: PassId) -> np.ndarray:
        """The values of a pass, (heads, tokens, width) of the tokens kept; one head without any."""
        _, last = self.span[at]
        width = self.columns[column] or last + 1
        rows = [
            block.reshape(-1, width)
            for _, values in self.read(column, {at})
            for block in blocks(values, width)
        ]
        return np.concatenate(rows).reshape(self.heads, -1, width)


def blocks(values: pa.Array, width: int) -> Iterator[np.ndarray]:
    """The rows of a vector column as 2-dimensional arrays; zeros fill short rows, NaN a NULL.

    NULL are the logits that a model did not compute, as `generate` asks for those of a prompt's
    last token alone.
    """
    rows = max(1, BLOCK // width)
    for start in range(0, len(values), rows):
        some = values.slice(start, rows)
        flat = some.flatten().to_numpy(zero_copy_only=False)
        if not pa.types.is_fixed_size_list(values.type):
            block = np.zeros((len(some), width), np.float32)
            block[np.arange(width) < some.value_lengths().to_numpy()[:, None]] = flat
            yield block
        elif some.null_count:
            block = np.full((len(some), width), np.nan, np.float32)
            block[some.is_valid().to_numpy(zero_copy_only=False)] = flat.reshape(-1, width)
            yield block
        else:
            yield flat
