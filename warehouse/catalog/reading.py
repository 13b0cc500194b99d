"""A run read back from the lake: what it has, and its tensors, a block of rows at a time.

A captured run and an imported one store the same rows in different orders; here they come in one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from string import Template

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.vocabulary import SITES

#: Values that are in memory at once.
BLOCK = 1 << 22
#: Attention weights of one pass that are in memory at once, several heads whole.
HEAD_VALUES = 1 << 25
#: Names of sites that arrays spell differently.
KEYS = {"mlp_down_in": "mlp_act", "weights": "attn_weights"}

#: (prompt_id, step) of a forward pass.
Pass = tuple[int, int]


@dataclass(frozen=True)
class Selection:
    """What of a run is wanted; None is everything.

    Attributes:
        sites: names of sites; also `attention`, `embeddings`, `logits`.
        layers: decoder blocks.
        steps: forward passes.
    """

    sites: frozenset[str] | None = None
    layers: frozenset[int] | None = None
    steps: frozenset[int] | None = None

    def step(self, number: int) -> bool:
        """Whether a forward pass is wanted."""
        return self.steps is None or number in self.steps

    def layer(self, number: int) -> bool:
        """Whether a decoder block is wanted."""
        return self.layers is None or number in self.layers

    def site(self, name: str) -> bool:
        """Whether a column of the lake is wanted."""
        return self.sites is None or bool(
            self.sites & {name, KEYS.get(name), {"weights": "attention"}.get(name)}
        )


def numbers(text: str | None, known: list[int], what: str) -> frozenset[int] | None:
    """The numbers that a list such as `0-3,7` means; None for None.

    >>> sorted(numbers("0-2,5", list(range(8)), "layer"))
    [0, 1, 2, 5]

    Raises:
        AlabError: not such a list, or a number that does not exist; names those that do.
    """
    if text is None:
        return None
    asked: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise AlabError(
                f"{part!r} is no {what} or range of them", "Write for example: 0-3,7", 2
            )
        asked |= {first, last, *(n for n in known if first <= n <= last)}
    if missing := sorted(asked - set(known)):
        there = (
            f"{known[0]}-{known[-1]}"
            if known == list(range(len(known))) and known
            else ", ".join(map(str, known))
        )
        raise AlabError(
            f"there is no {what} {missing[0]} in this run", f"There are: {there or 'none'}"
        )
    return frozenset(asked)


def names(text: str | None, known: list[str]) -> frozenset[str] | None:
    """The sites that a list such as `q,k,attention` means; None for None.

    Raises:
        AlabError: there is no such site in the run; names those there are.
    """
    if text is None:
        return None
    asked = {name.strip() for name in text.split(",")}
    if unknown := sorted(asked - set(known)):
        there = f"There are: {', '.join(known)}" if known else "It has none; alab inspect says why."
        raise AlabError(f"there is no site {unknown[0]!r} in this run", there)
    return frozenset(asked)


class Run:
    """What the catalog knows about a run, and where its files are."""

    def __init__(self, lake: Lake, run_id: str, db: duckdb.DuckDBPyConnection):
        self.lake = lake
        self.run_id = run_id
        self.db = db

    def rows(self, table: str, order: str = "ALL") -> list[dict]:
        """Rows of a metadata table that belong to the run, without the run's id."""
        query = Template("SELECT * EXCLUDE (run_id) FROM $table WHERE run_id = ? ORDER BY $order")
        cursor = self.db.execute(query.substitute(table=table, order=order), [self.run_id])
        keys = [column[0] for column in cursor.description]
        return [dict(zip(keys, row, strict=True)) for row in cursor.fetchall()]

    @cached_property
    def files(self) -> dict[tuple[str, int | None], list[Path]]:
        """Part files of each dataset and layer, in the order they were written."""
        found: dict[tuple[str, int | None], list[Path]] = {}
        for row in sorted(self.rows("files"), key=lambda row: _part_number(row["path"])):
            found.setdefault((row["dataset"], row["layer"]), []).append(
                self.lake.root / row["path"]
            )
        return found

    def layers(self) -> list[int]:
        """Layers that the run has."""
        return sorted(row["layer"] for row in self.rows("layers"))

    def steps(self) -> list[int]:
        """Steps that the run has, over all its prompts."""
        return sorted({row["step"] for row in self.rows("steps")})

    def site_names(self) -> list[str]:
        """Sites that `--sites` may name."""
        datasets = {dataset for dataset, _ in self.files}
        captured = self.rows("sites") if "activations" in datasets else []
        sites = {row["site"] for row in captured if row["width"] is not None}
        more = [
            *(["attention"] if "attention" in datasets else []),
            *(["mlp_act"] if "mlp_down_in" in sites else []),
        ]
        outputs = ["embeddings", "logits"] if "outputs" in datasets else []
        return list(dict.fromkeys([*(site for site in SITES if site in sites), *more, *outputs]))


def _part_number(path: str) -> tuple[int, str]:
    match = re.search(r"part-(\d+)\.parquet$", path)
    return (int(match[1]) if match else 0, path)


@dataclass
class Piece:
    """Consecutive rows of one pass in one row group."""

    at: Pass
    file: int
    group: int
    start: int
    stop: int


@dataclass
class Source:
    """The part files of a dataset and layer, and where in them each pass is.

    Attributes:
        pieces: rows of each pass, in the order they are stored.
        span: first and last position of each pass.
        count: number of rows of each pass.
    """

    files: list[Path]
    pieces: list[Piece] = field(default_factory=list)
    span: dict[Pass, tuple[int, int]] = field(default_factory=dict)
    count: dict[Pass, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open = [pq.ParquetFile(path) for path in self.files]
        self._latest: tuple[tuple | None, pa.Table | None] = (None, None)
        for number, file in enumerate(self.open):
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["prompt_id", "step", "position"])
                self._index(number, group, *(column.to_numpy() for column in table.columns))

    def _index(
        self, number: int, group: int, prompts: np.ndarray, steps: np.ndarray, positions: np.ndarray
    ) -> None:
        edges = np.flatnonzero((np.diff(prompts) != 0) | (np.diff(steps) != 0)) + 1
        for start, stop in zip([0, *edges], [*edges, len(steps)], strict=True):
            at = int(prompts[start]), int(steps[start])
            self.pieces.append(Piece(at, number, group, start, stop))
            low, high = int(positions[start:stop].min()), int(positions[start:stop].max())
            before = self.span.get(at, (low, high))
            self.span[at] = min(before[0], low), max(before[1], high)
            self.count[at] = self.count.get(at, 0) + int(stop - start)

    @cached_property
    def columns(self) -> dict[str, int | None]:
        """Width of each vector column that has values; None where it differs from row to row."""
        fields = [f for f in self.open[0].schema_arrow if pa.types.is_nested(f.type)]
        widths = {
            f.name: f.type.list_size if pa.types.is_fixed_size_list(f.type) else None
            for f in fields
        }
        return {name: width for name, width in widths.items() if width or name == "weights"}

    def read(self, column: str, passes: set[Pass]) -> Iterator[tuple[Pass, pa.Array]]:
        """The values of a column, some rows of a pass at a time: by position, attention by head and then position."""
        wanted = [piece for piece in self.pieces if piece.at in passes]
        if column == "weights":
            for at, pieces in groupby(wanted, key=lambda piece: piece.at):
                yield from ((at, rows) for rows in self._by_head(at, list(pieces)))
            return
        for piece in wanted:
            yield piece.at, self._rows(piece, [column]).column(0).combine_chunks()

    def _by_head(self, at: Pass, pieces: list[Piece]) -> Iterator[pa.Array]:
        """The attention weights of a pass, as many heads at a time as fit in memory.

        A capture writes them by position and then head, an import by head and then position.
        """
        first, last = self.span[at]
        heads = self.count[at] // (last - first + 1)
        several = max(1, HEAD_VALUES // ((last - first + 1) * (last + 1)))
        for start in range(0, heads, several):
            parts = []
            for piece in pieces:
                rows = self._rows(piece, ["weights", "head", "position"])
                parts.append(
                    rows.filter((pc.field("head") >= start) & (pc.field("head") < start + several))
                )
            table = pa.concat_tables(parts)
            order = np.lexsort((table["position"].to_numpy(), table["head"].to_numpy()))
            yield table["weights"].combine_chunks().take(pa.array(order))

    def _rows(self, piece: Piece, columns: list[str]) -> pa.Table:
        """Some columns of a piece's rows; passes that are asked for one by one often share a row group."""
        key = piece.file, piece.group, *columns
        if self._latest[0] != key:
            self._latest = key, self.open[piece.file].read_row_group(piece.group, columns=columns)
        return self._latest[1].slice(piece.start, piece.stop - piece.start)

    def tensor(self, column: str, at: Pass) -> np.ndarray:
        """The values of a pass, (heads, tokens, width); one head for what has none."""
        first, last = self.span[at]
        width = self.columns[column] or last + 1
        rows = [
            block.reshape(-1, width)
            for _, values in self.read(column, {at})
            for block in blocks(values, width)
        ]
        return np.concatenate(rows).reshape(-1, last - first + 1, width)


def blocks(values: pa.Array, width: int) -> Iterator[np.ndarray]:
    """The rows of a vector column as 2-dimensional arrays; short rows are filled with zeros, NULL is a row of NaN.

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


def sources(run: Run, wanted: Selection) -> Iterator[tuple[str, int | None, Source]]:
    """The wanted parts of the lake as (dataset, layer, source), opened one after the other."""
    layers: list[int | None] = [n for n in run.layers() if wanted.layer(n)]
    for layer in [None, *layers]:
        for dataset in ("outputs",) if layer is None else ("activations", "attention"):
            if parts := run.files.get((dataset, layer)):
                yield dataset, layer, Source(parts)
