"""Gathers the tensors of forward passes into row groups of rounded values, on the thread that runs the model.

A prefill is rounded while it is in the cache and cut into row groups; rounded to 16 bits, twice as
much of it may wait to be written. The single rows of decode steps are copied into buffers, and the
tensors let go at once: kept for their row group to fill, they would pin the memory between the
    caches that grow with every step. One copy here costs
less than waking another thread to make it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

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
    """Tensors of consecutive tokens on their way to the lake.

    Attributes:
        prompt_id: conversation within the run.
        step: forward pass.
        kind: prefill or decode.
        position: position of the first token.
        layer: decoder block; None for embeddings and logits.
        sites: a (tokens, width) tensor per site.
        attention: (heads, tokens, keys) weights, the last key at the last token, or None.
        ready: on a CUDA device, the event after which the tensors are on the host.
    """

    prompt_id: int
    step: int
    kind: str
    position: int
    layer: int | None
    sites: dict[str, Tensor]
    attention: Tensor | None = None
    ready: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(t.nbytes for t in self.sites.values()) + (
            0 if self.attention is None else self.attention.nbytes
        )

    def piece(self, first: int, count: int) -> "Piece":
        """Some of the tokens, by name only."""
        return Piece(self.prompt_id, self.step, self.kind, self.position + first, count)


@dataclass
class Piece:
    """Consecutive tokens of one forward pass; `position` is that of the first of `count`."""

    prompt_id: int
    step: int
    kind: str
    position: int
    count: int


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
        pieces: query tokens, each piece with the number of keys that its first token sees.
        weights: as `Rounding` gives them: the causal half, flat, by position and then head; or
            (heads, tokens, keys) of the one piece, which may be the model's own and must not be
            changed.
    """

    layer: int
    heads: int
    pieces: list[tuple[Piece, int]]
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
        stats: what was seen in the values so far.

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
        if rows.sites:
            if rows.layer not in self._rows:
                self._rows[rows.layer] = _RowGather(
                    rows.layer,
                    self._group(rows.layer),
                    self._round,
                    self.stats,
                    set(self._widths[rows.layer]),
                )
            yield from self._rows[rows.layer].take(rows)
        if rows.attention is not None:
            if rows.layer not in self._attention:
                self._attention[rows.layer] = _AttentionGather(rows.layer, self._round, self.stats)
            yield from self._attention[rows.layer].take(rows)

    def rest(self) -> Iterator[RowGroup | AttentionGroup]:
        """What is left when no more rows come."""
        for gather in (*self._rows.values(), *self._attention.values()):
            yield from gather.rest()

    def _check(self, rows: Rows) -> None:
        counts = {site: len(tensor) for site, tensor in rows.sites.items()}
        counts |= {} if rows.attention is None else {"attention": rows.attention.shape[1]}
        if len(set(counts.values())) > 1:
            raise AlabError(
                f"tensors of layer {rows.layer} are of different numbers of tokens: {counts}"
            )
        for site, tensor in rows.sites.items():
            known = self._widths[rows.layer].get(site)
            if site in self._widths[rows.layer] and (tensor.ndim != 2 or tensor.shape[1] != known):
                where = f" of layer {rows.layer}" if rows.layer is not None else ""
                raise AlabError(
                    f"{site}{where} is shaped {tuple(tensor.shape)}; the probe pass had vectors of {known}",
                    "The model changed while it was captured.",
                )
        if (
            rows.attention is not None
            and rows.attention.shape[2] > rows.position + rows.attention.shape[1]
        ):
            seen, there = rows.attention.shape[2], rows.position + rows.attention.shape[1]
            raise AlabError(
                f"attention of layer {rows.layer} has {seen} keys for a sequence of {there} tokens",
                "Virtual tokens and static caches cannot be captured.",
            )

    def _group(self, layer: int | None) -> int:
        """Rows in a row group: fewer for a wide model, since each layer keeps up to a group of decode rows."""
        if layer is None:
            return max(1, min(GROUP_ROWS, OUTPUT_VALUES // max(self._widths[None].values())))
        a_token = 4 * sum(
            sum(sites.values()) for key, sites in self._widths.items() if key is not None
        )
        return max(16, min(GROUP_ROWS, PENDING_BYTES // max(1, a_token)))


class _RowGather:
    """The vectors of one layer, or embeddings and logits; a row group has the same sites in all its rows.

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
        widths = {site: tensor.shape[1] for site, tensor in rows.sites.items()}
        if widths != self._widths:
            yield from self.rest()
            self._widths = widths
        count = len(next(iter(rows.sites.values())))
        first = min(
            count, -self._count % self._group
        )  # what the row group that was begun has room for
        last = count - (count - first) % self._group
        if first:
            self._keep(rows, 0, first)
            if self._count == self._group:
                yield from self.rest()
        some = max(1, SLICE_VALUES // (self._group * max(widths.values()))) * self._group
        for start in range(first, last, some):
            end = min(start + some, last)
            sites = self._rounded({site: tensor[start:end] for site, tensor in rows.sites.items()})
            for at in range(start, end, self._group):
                part = {site: tensor[at - start :][: self._group] for site, tensor in sites.items()}
                if part:
                    yield RowGroup(self._layer, [rows.piece(at, self._group)], part)
        if last < count:
            self._keep(rows, last, count)

    def rest(self) -> Iterator[RowGroup]:
        if self._count:
            parts = self._buffer[: self._count].split(list(self._widths.values()), dim=1)
            if sites := self._rounded(dict(zip(self._widths, parts, strict=True))):
                yield RowGroup(self._layer, self._pieces, sites)
        self._buffer, self._pieces, self._count = None, [], 0

    def _keep(self, rows: Rows, start: int, end: int) -> None:
        """Copy rows to the row group that is begun."""
        if self._buffer is None:
            self._buffer = _buffer(self._group, sum(self._widths.values()))
        place = self._buffer[self._count : self._count + end - start]
        torch.cat([rows.sites[site][start:end] for site in self._widths], dim=1, out=place)
        self._pieces.append(rows.piece(start, end - start))
        self._count += end - start

    def _rounded(self, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._layer is not None:
            for seen, value in (
                (self._stats.residual, residual_error(sites)),
                (self._stats.changed, change(sites)),
            ):
                if value is not None:
                    seen[self._layer] = max(seen.get(self._layer, 0.0), value)
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
        self._seen = stats.site(layer, "attention")
        self._buffer: Tensor | None = None
        self._pieces: list[tuple[Piece, int]] = []
        self._count = self._heads = 0

    def take(self, rows: Rows) -> Iterator[AttentionGroup]:
        weights, (heads, queries, keys) = rows.attention, rows.attention.shape
        if keys < rows.position + queries:  # a sliding window's cache has the latest keys only
            weights = pad(weights, (rows.position + queries - keys, 0))
            keys = weights.shape[-1]
        if queries > 1 or heads != self._heads or self._count + heads * keys > ATTENTION_VALUES:
            yield from self.rest()
        self._heads = heads
        if queries == 1:
            if self._buffer is None:
                self._buffer = _buffer(max(ATTENTION_VALUES, heads * keys))
            self._buffer[self._count : self._count + heads * keys] = weights.reshape(-1)
            self._pieces.append((rows.piece(0, 1), keys))
            self._count += heads * keys
            return
        first = 0
        while first < queries:
            sees = keys - queries + first + 1
            # n tokens see n·sees + n(n − 1)/2 keys
            most = int(
                (1 / 2 - sees) + math.sqrt((sees - 1 / 2) ** 2 + 2 * ATTENTION_VALUES / heads)
            )
            count = min(max(1, most), queries - first)
            part = weights[:, first : first + count, : sees + count - 1]
            part = self._round(part, self._seen, sees - 1)
            yield AttentionGroup(self._layer, heads, [(rows.piece(first, count), sees)], part)
            first += count

    def rest(self) -> Iterator[AttentionGroup]:
        if self._count:
            weights = self._round(self._buffer[: self._count], self._seen)
            yield AttentionGroup(self._layer, self._heads, self._pieces, weights)
        self._buffer, self._pieces, self._count = None, [], 0


def _buffer(*shape: int) -> Tensor:
    """Room for values of passes that are made with `torch.inference_mode` and without."""
    with torch.inference_mode(False):
        return torch.empty(shape)
