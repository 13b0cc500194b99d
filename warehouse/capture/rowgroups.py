"""Gathers the tensors of forward passes into row groups of rounded values, on the model's thread.

A prefill is rounded while it is in the cache and cut into row groups; rounded to 16 bits, twice as
much of it may wait to be written. The few rows of a decode step, or of short prompts that are read
together, are copied into buffers, and the tensors let go at once: kept for their row group to fill,
they would pin the memory between the caches that grow with every step. One copy here costs less
than waking another thread to make it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from warehouse.capture.pieces import Cutter, Piece, positions_of
from warehouse.capture.rounding import Rounding, Stats, change, residual_error
from warehouse.errors import AlabError

#: Rows of activations that are compressed together; the last token of a prefill is read without the
#: rest.
GROUP_ROWS = 128
#: Values of outputs that are compressed together.
OUTPUT_VALUES = 1 << 20
#: Values of a site that are rounded together.
SLICE_VALUES = 1 << 21
#: Attention weights that are compressed together: so many stay in a core's cache while they are
#: worked on.
ATTENTION_VALUES = 1 << 18
#: Bytes of decode rows, over all layers, that may wait for their row group to fill.
PENDING_BYTES = 128 << 20


@dataclass
class Rows:
    """Tensors of a layer in one forward pass on their way to the lake: a row for each token.

    Attributes:
        pieces: whose the rows are, one piece after the other.
        layer: decoder block; None for embeddings and logits.
        sites: a (rows, width) tensor per site.
        attention: (heads, rows, keys) weights, or None. Of one piece, the last key is the last
            token's own; of several, the first key is that of position 0, and the keys after a
            token's own are not looked at.
        ready: on a CUDA device, the event after which the tensors are on the host.
    """

    pieces: list[Piece]
    layer: int | None
    sites: dict[str, Tensor]
    attention: Tensor | None = None
    ready: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        weights = 0 if self.attention is None else self.attention.nbytes
        return weights + sum(tensor.nbytes for tensor in self.sites.values())


@dataclass
class RowGroup:
    """Rows of a layer, or of embeddings and logits (`layer` None), that are written together.

    Attributes:
        sites: a (rows, width) tensor per site, as `Rounding` gives them; they may be the model's
            own and must not be changed.
    """

    layer: int | None
    pieces: list[Piece]
    sites: dict[str, Tensor]

    @property
    def file(self) -> tuple[str, int | None]:
        """Dataset and layer, which name the file."""
        return "outputs" if self.layer is None else "activations", self.layer

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(tensor.nbytes for tensor in self.sites.values())


@dataclass
class AttentionGroup:
    """Attention weights of a layer that are written together.

    Attributes:
        heads: number of heads.
        pieces: query tokens; each sees the keys up to its own position.
        weights: as `Rounding` gives them: the causal half, flat, by position and then head; or
            (heads, tokens, keys) of the one piece, which may be the model's own and must not be
            changed.
    """

    layer: int
    heads: int
    pieces: list[Piece]
    weights: Tensor

    @property
    def file(self) -> tuple[str, int | None]:
        """Dataset and layer, which name the file."""
        return "attention", self.layer

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor holds."""
        return self.weights.nbytes


class Gather:
    """Cuts and joins rows into row groups, and rounds them.

    Attributes:
        stats: what the values were like so far.

    Args:
        widths: per layer (None for embeddings and logits) the width of each site that will come.
        store_dtype: precision to round to: float32, float16 or bfloat16.
    """

    def __init__(self, widths: dict[int | None, dict[str, int]], store_dtype: str):
        self.stats = Stats()
        self._round = Rounding(store_dtype)
        self._widths = widths
        self._rows: dict[int | None, _RowGather] = {}
        self._attention: dict[int, _AttentionGather] = {}

    def take(self, rows: Rows) -> Iterator[RowGroup | AttentionGroup]:
        """Take the rows of a layer and pass; gives the row groups that are full.

        Raises:
            AlabError: a tensor has not the width that the file's schema says, or not a row for each
                token.
        """
        self._check(rows)
        layer = rows.layer
        if rows.sites:
            if layer not in self._rows:
                stored = set(self._widths[layer])
                group = self._group_rows(layer)
                self._rows[layer] = _RowGather(layer, group, self._round, self.stats, stored)
            yield from self._rows[layer].take(rows)
        if rows.attention is not None and layer is not None:
            if layer not in self._attention:
                self._attention[layer] = _AttentionGather(layer, self._round, self.stats)
            yield from self._attention[layer].take(rows.attention, rows.pieces)

    def rest(self) -> Iterator[RowGroup | AttentionGroup]:
        """What is left when no more rows come."""
        for rows in self._rows.values():
            yield from rows.rest()
        for attention in self._attention.values():
            yield from attention.rest()

    def _check(self, rows: Rows) -> None:
        tokens = sum(piece.count for piece in rows.pieces)
        counts = {site: len(tensor) for site, tensor in rows.sites.items()}
        counts |= {} if rows.attention is None else {"attention": rows.attention.shape[1]}
        if set(counts.values()) - {tokens}:
            raise AlabError(
                f"tensors of layer {rows.layer} are of different numbers of tokens: {counts}"
            )
        widths = self._widths[rows.layer]
        for site, tensor in rows.sites.items():
            if site in widths and (tensor.ndim != 2 or tensor.shape[1] != widths[site]):
                where = f" of layer {rows.layer}" if rows.layer is not None else ""
                raise AlabError(
                    f"{site}{where} is shaped {tuple(tensor.shape)}; "
                    f"the probe pass had vectors of {widths[site]}",
                    "The model changed while it was captured.",
                )
        keys = 0 if rows.attention is None else rows.attention.shape[2]
        if keys and keys > (longest := max(piece.end for piece in rows.pieces)):
            raise AlabError(
                f"attention of layer {rows.layer} has {keys} keys "
                f"for a sequence of {longest} tokens",
                "Virtual tokens and static caches cannot be captured.",
            )

    def _group_rows(self, layer: int | None) -> int:
        """Rows in a row group: fewer for a wide model, as each layer keeps up to a group."""
        if layer is None:
            return max(1, min(GROUP_ROWS, OUTPUT_VALUES // max(self._widths[None].values())))
        layers = [sites for key, sites in self._widths.items() if key is not None]
        a_token = 4 * sum(sum(sites.values()) for sites in layers)
        return max(16, min(GROUP_ROWS, PENDING_BYTES // max(1, a_token)))


class _RowGather:
    """The vectors of one layer, or embeddings and logits; all rows of a row group have its sites.

    Sites that are not stored come along to be measured.
    """

    def __init__(
        self, layer: int | None, group: int, rounding: Rounding, stats: Stats, stored: set[str]
    ):
        self._layer = layer
        self._stored = stored
        self._group = group
        self._round = rounding
        self._stats = stats
        self._widths: dict[str, int] = {}  # of the sites, in the order in which a row holds them
        self._buffer: Tensor | None = None
        self._pieces: list[Piece] = []
        self._count = 0

    def take(self, rows: Rows) -> Iterator[RowGroup]:
        """Fill the row group that was begun, give whole ones off the tensors, begin another."""
        widths = {site: tensor.shape[1] for site, tensor in rows.sites.items()}
        if widths != self._widths:
            yield from self.rest()
            self._widths = widths
        cutter = Cutter(rows.pieces)
        count = len(next(iter(rows.sites.values())))
        first = min(count, -self._count % self._group)  # rows that the one begun has room for
        last = count - (count - first) % self._group
        if first:
            self._append(rows.sites, cutter, 0, first)
            if self._count == self._group:
                yield from self.rest()
        some = max(1, SLICE_VALUES // (self._group * max(widths.values()))) * self._group
        for start in range(first, last, some):
            end = min(start + some, last)
            sites = self._rounded({site: tensor[start:end] for site, tensor in rows.sites.items()})
            for at in range(0, end - start, self._group):
                part = {site: tensor[at:][: self._group] for site, tensor in sites.items()}
                pieces = cutter.next(self._group)
                if part:
                    yield RowGroup(self._layer, pieces, part)
        if last < count:
            self._append(rows.sites, cutter, last, count)

    def rest(self) -> Iterator[RowGroup]:
        """The row group that was begun, as it is."""
        if self._buffer is not None:
            parts = self._buffer[: self._count].split(list(self._widths.values()), dim=1)
            if sites := self._rounded(dict(zip(self._widths, parts, strict=True))):
                yield RowGroup(self._layer, self._pieces, sites)
        self._buffer, self._pieces, self._count = None, [], 0

    def _append(self, sites: dict[str, Tensor], cutter: Cutter, start: int, end: int) -> None:
        """Copy rows to the row group that was begun."""
        if self._buffer is None:
            self._buffer = _buffer(self._group, sum(self._widths.values()))
        place = self._buffer[self._count : self._count + end - start]
        torch.cat([sites[site][start:end] for site in self._widths], dim=1, out=place)
        self._pieces += cutter.next(end - start)
        self._count += end - start

    def _rounded(self, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._layer is not None:
            for largest, value in (
                (self._stats.residual, residual_error(sites)),
                (self._stats.changed, change(sites)),
            ):
                if value is not None:
                    largest[self._layer] = max(largest.get(self._layer, 0.0), value)
        return {
            site: self._round(tensor, self._stats.site(self._layer, site))
            for site, tensor in sites.items()
            if site in self._stored
        }


class _AttentionGather:
    """The attention weights of one layer."""

    def __init__(self, layer: int, rounding: Rounding, stats: Stats):
        self._layer = layer
        self._round = rounding
        self._stats = stats.site(layer, "attention")
        self._buffer: Tensor | None = None
        self._pieces: list[Piece] = []
        self._count = self._heads = 0

    def take(self, weights: Tensor, pieces: list[Piece]) -> Iterator[AttentionGroup]:
        heads, tokens, keys = weights.shape
        missing = max(piece.end for piece in pieces) - keys
        if len(pieces) == 1 and missing > 0:  # a sliding window's cache has the latest keys only
            weights = pad(weights, (missing, 0))
        if heads != self._heads or (len(pieces) == 1 and tokens > 1):
            yield from self.rest()
        self._heads = heads
        if len(pieces) == 1 and tokens > 1:
            yield from self._cut(weights, pieces[0])
        else:
            yield from self._join(weights, pieces)

    def _cut(self, weights: Tensor, piece: Piece) -> Iterator[AttentionGroup]:
        """Row groups off the (heads, tokens, keys) weights of one piece, as large as a cache."""
        first = 0
        while first < piece.count:
            sees = piece.position + first + 1
            # n tokens see n·sees + n(n − 1)/2 keys
            room = 2 * ATTENTION_VALUES / self._heads
            most = int((1 / 2 - sees) + math.sqrt((sees - 1 / 2) ** 2 + room))
            count = min(max(1, most), piece.count - first)
            part = weights[:, first : first + count, : sees + count - 1]
            part = self._round(part, self._stats, sees - 1)
            yield AttentionGroup(self._layer, self._heads, [piece.part(first, count)], part)
            first += count

    def _join(self, weights: Tensor, pieces: list[Piece]) -> Iterator[AttentionGroup]:
        """Copy what each row sees to the row group that was begun; gives those that are full."""
        cutter, sees = Cutter(pieces), positions_of(pieces) + 1
        ends = self._heads * sees.cumsum()  # of each row's values among those of all rows
        start = written = 0
        while start < len(ends):
            room = ATTENTION_VALUES - self._count
            stop = int(ends.searchsorted(written + room, side="right"))
            if stop == start and self._count:
                yield from self.rest()
                continue
            stop = max(stop, start + 1)  # one row may be longer than a row group
            size = int(ends[stop - 1]) - written
            if self._buffer is None:
                self._buffer = _buffer(max(ATTENTION_VALUES, size))
            part = _prefixes(weights[:, start:stop], sees[start:stop])
            self._buffer[self._count : self._count + size] = part
            self._pieces += cutter.next(stop - start)
            self._count += size
            written, start = written + size, stop

    def rest(self) -> Iterator[AttentionGroup]:
        if self._buffer is not None:
            weights = self._round(self._buffer[: self._count], self._stats)
            yield AttentionGroup(self._layer, self._heads, self._pieces, weights)
        self._buffer, self._pieces, self._count = None, [], 0


def _prefixes(weights: Tensor, sees: np.ndarray) -> Tensor:
    """The first `sees[i]` of (heads, rows, keys) weights for row i: flat, by row, then head."""
    if len(sees) == 1:
        return weights[..., : sees[0]].reshape(-1)
    shown = torch.arange(weights.shape[2]) < torch.from_numpy(sees)[:, None, None]
    return weights.transpose(0, 1).masked_select(shown)


def _buffer(*shape: int) -> Tensor:
    """Room for values of passes that are made with `torch.inference_mode` and without."""
    with torch.inference_mode(False):
        return torch.empty(shape)
