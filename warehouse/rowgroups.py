"""Gathers tensors into row groups, rounds them, and appends them to part files."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warehouse import lake, parquet
from warehouse.pages import PageWriter

#: Rows of activations that are compressed together; the last token of a prefill is read without the rest.
GROUP_ROWS = 128
#: Values that outputs and attention compress together.
GROUP_VALUES = 1 << 20
#: A part file that has grown past this is closed, and another begun.
PART_BYTES = 256 << 20

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
        attention: (heads, tokens, keys) weights, or None.
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
    def count(self) -> int:
        """Number of tokens."""
        return len(next(iter(self.sites.values()))) if self.sites else 0

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        tensors = [*self.sites.values(), *([self.attention] if self.attention is not None else [])]
        return sum(tensor.nbytes for tensor in tensors)

    def tail(self, start: int) -> "Rows":
        """The tokens from `start` on, copied, so that the tensors they come from can be freed."""
        sites = {site: tensor[start:].clone() for site, tensor in self.sites.items()}
        return Rows(self.prompt_id, self.step, self.kind, self.position + start, self.layer, sites)


@dataclass
class SiteStats:
    """What was seen while a site of a layer was written."""

    out_of_range: int = 0
    nonfinite: int = 0


@dataclass
class Stats:
    """What was seen while a run was written.

    Attributes:
        sites: per (layer or None, site).
        residual: per layer, (largest absolute error of the residual identity, largest |hidden_out|).
    """

    sites: dict[tuple[int | None, str], SiteStats] = field(default_factory=dict)
    residual: dict[int, tuple[float, float]] = field(default_factory=dict)


class Scratch:
    """Buffers that are used again and again: touching fresh memory costs more than filling it."""

    def __init__(self, store_dtype: str):
        self.dtype = _TORCH[store_dtype]
        self.limit = torch.finfo(self.dtype).max
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A flat buffer of `count` values; its content is whatever was there."""
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[name, dtype] = torch.empty(count, dtype=dtype)
        return buffer[:count]

    def round(self, values: Tensor, stats: SiteStats) -> float:
        """Round a float32 tensor to the stored precision in place; gives its largest finite absolute value.

        NaN and infinities stay as they are, and so does what is out of range; both are counted.
        """
        low, high = (float(end) for end in torch.aminmax(values))
        largest = max(-low, high)
        if largest <= self.limit:
            if self.dtype != torch.float32:
                rounded = self.get("rounded", values.numel(), self.dtype).view(values.shape)
                rounded.copy_(values)
                values.copy_(rounded)
            return largest
        finite = values.isfinite()
        outside = finite & (values.abs() > self.limit)
        stats.nonfinite += int((~finite).sum())
        stats.out_of_range += int(outside.sum())
        keep = outside | ~finite
        values.copy_(torch.where(keep, values, values.to(self.dtype).float()))
        return float(values[finite].abs().max()) if finite.any() else 0.0


class Parts:
    """The part files of one layer in one dataset; named by their steps once those are known."""

    def __init__(self, staged: lake.StagedRun, dataset: str, layer: int | None, schema: Any):
        self._staged = staged
        self._dataset = dataset
        self._schema = schema
        self._folder = [] if layer is None else [f"layer={layer:02d}"]
        self._number = 0
        self._writer: PageWriter | None = None

    def write(self, count: int, columns: dict[str, Any]) -> None:
        """Append one row group; `columns` as `PageWriter.write` takes them."""
        if self._writer is None:
            self._open = self._staged.path(self._dataset, *self._folder, f".part-{self._number}.parquet")
            self._open.parent.mkdir(parents=True, exist_ok=True)
            self._writer = PageWriter(self._open, self._schema)
            self._steps = []
        self._writer.write(count, columns)
        self._steps += [int(columns["step"].min()), int(columns["step"].max())]
        if self._writer.size > PART_BYTES:
            self.close()

    def close(self) -> None:
        """Finish the current part and move it to the folder of its steps."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        steps = f"steps={min(self._steps)}-{max(self._steps)}"
        final = self._staged.path(self._dataset, steps, *self._folder, f"part-{self._number}.parquet")
        final.parent.mkdir(parents=True, exist_ok=True)
        self._open.rename(final)
        with contextlib.suppress(OSError):
            self._open.parent.rmdir()
        self._number += 1

    def abandon(self) -> None:
        """Let go of the file after an error."""
        if self._writer is not None:
            self._writer.abandon()


class RowFile:
    """One row per token, one vector per site: activations of a layer, or embeddings and logits."""

    def __init__(
        self,
        staged: lake.StagedRun,
        layer: int | None,
        widths: dict[str, int],
        group: int,
        scratch: Scratch,
        stats: Stats,
    ):
        schema = parquet.output_schema(widths) if layer is None else parquet.activation_schema(widths)
        self.parts = Parts(staged, "outputs" if layer is None else "activations", layer, schema)
        self._layer = layer
        self._widths = widths
        self._scratch = scratch
        self._stats = stats
        self._group = group
        self._pending: list[Rows] = []
        self._count = 0

    def add(self, rows: Rows) -> None:
        """Take rows; writes whole row groups and keeps the rest for later."""
        self._pending.append(rows)
        self._count += rows.count
        start = 0
        while self._count >= self._group:
            start = self._flush(self._group, start)
        if start:  # the rest of these rows is copied, so that a whole prefill is not kept for it
            self._pending[-1] = self._pending[-1].tail(start)

    def close(self) -> None:
        """Write what is left and finish the file."""
        if self._count:
            self._flush(self._count, 0)
        self.parts.close()

    def _flush(self, count: int, start: int) -> int:
        """Write the first `count` pending rows, from row `start` of the oldest; gives where the next begin."""
        pieces, left = [], count
        while left:
            rows = self._pending[0]
            stop = min(rows.count, start + left)
            pieces.append((rows, start, stop))
            left -= stop - start
            start = stop
            if stop == rows.count:
                self._pending.pop(0)
                start = 0
        self._count -= count
        self.parts.write(count, self._columns(pieces, count))
        return start

    def _columns(self, pieces: list[tuple[Rows, int, int]], count: int) -> dict[str, Any]:
        """The columns of one row group; each vector column in a buffer of its own, rounded."""
        values: dict[str, Tensor] = {}
        for site in pieces[0][0].sites:
            width = self._widths[site]
            block = values[site] = self._scratch.get(site, count * width).view(count, width)
            at = 0
            for rows, start, stop in pieces:
                block[at : at + stop - start].copy_(rows.sites[site][start:stop])
                at += stop - start
        error = self._residual_error(values, count)
        for site, block in values.items():
            largest = self._scratch.round(block, self._stats.sites.setdefault((self._layer, site), SiteStats()))
            if site == "hidden_out" and error is not None:
                before = self._stats.residual.get(self._layer, (0.0, 0.0))
                self._stats.residual[self._layer] = max(before[0], error), max(before[1], largest)
        columns: dict[str, Any] = {site: block.numpy() for site, block in values.items()}
        lengths = [stop - start for _, start, stop in pieces]
        columns["prompt_id"] = np.repeat([rows.prompt_id for rows, _, _ in pieces], lengths)
        columns["step"] = np.repeat([rows.step for rows, _, _ in pieces], lengths)
        columns["position"] = np.concatenate([rows.position + np.arange(start, stop) for rows, start, stop in pieces])
        columns["kind"] = [rows.kind for rows, start, stop in pieces for _ in range(start, stop)]
        return columns

    def _residual_error(self, values: dict[str, Tensor], count: int) -> float | None:
        """Largest |hidden_out − hidden_in − contributions| of the rows; None where parts are missing."""
        if "hidden_in" not in values or "hidden_out" not in values or not {"attn_out", "mlp_down_out"} & set(values):
            return None
        difference = self._scratch.get("difference", values["hidden_out"].numel()).view(count, -1)
        torch.sub(values["hidden_out"], values["hidden_in"], out=difference)
        for site in ("attn_out", "mlp_down_out"):
            if site in values:
                difference.sub_(values[site])
        low, high = torch.aminmax(difference)
        return max(-float(low), float(high))


class AttentionFile:
    """One row per head and query position, with the causal half of the weights."""

    def __init__(
        self, staged: lake.StagedRun, layer: int, scratch: Scratch, stats: Stats, places: dict[tuple, np.ndarray]
    ):
        self.parts = Parts(staged, "attention", layer, parquet.attention_schema())
        self._scratch = scratch
        self._pending: list[tuple[Rows, int, int, int]] = []  # rows, head, first and last + 1 query
        self._stats = stats.sites.setdefault((layer, "attention"), SiteStats())
        self._places = places
        self._values = 0

    def add(self, rows: Rows) -> None:
        """Take the weights of a pass, (heads, tokens, keys)."""
        heads, queries, keys = rows.attention.shape
        before = keys - queries
        for head in range(heads):
            first = 0
            while first < queries:
                last, values = first, 0
                while last < queries and (values == 0 or values + before + last + 1 <= GROUP_VALUES):
                    values += before + last + 1
                    last += 1
                if self._values and self._values + values > GROUP_VALUES:
                    self._flush()
                self._pending.append((rows, head, first, last))
                self._values += values
                first = last
        if queries > 1:  # the weights of a whole prefill are not kept waiting
            self._flush()

    def close(self) -> None:
        """Write what is left and finish the file."""
        if self._pending:
            self._flush()
        self.parts.close()

    def _flush(self) -> None:
        values = self._scratch.get("attention", self._values)
        at, lengths = 0, []
        flat = values.numpy()
        for rows, head, first, last in self._pending:
            _, queries, keys = rows.attention.shape
            source = rows.attention[head, first:last]
            source = (source if source.dtype == torch.float32 else source.float()).reshape(-1).numpy()
            places = self._causal_half(first, last, keys - queries, keys)
            np.take(source, places, out=flat[at : at + places.size], mode="clip")
            at += places.size
            lengths.append(np.arange(first, last) + (keys - queries + 1))
        self._scratch.round(values, self._stats)
        counts = [last - first for _, _, first, last in self._pending]
        every = [rows for rows, _, _, _ in self._pending]
        columns = {
            "prompt_id": np.repeat([rows.prompt_id for rows in every], counts),
            "step": np.repeat([rows.step for rows in every], counts),
            "head": np.repeat([head for _, head, _, _ in self._pending], counts),
            "position": np.concatenate(
                [rows.position + np.arange(first, last) for rows, _, first, last in self._pending]
            ),
            "weights": (flat, np.concatenate(lengths)),
        }
        self.parts.write(sum(counts), columns)
        self._pending.clear()
        self._values = 0

    def _causal_half(self, first: int, last: int, before: int, keys: int) -> np.ndarray:
        """Places of the weights on and before the diagonal in query rows first … last − 1, flattened."""
        key = first, last, before
        if key not in self._places:
            if sum(places.size for places in self._places.values()) > 4 * GROUP_VALUES:
                self._places.clear()
            causal = np.arange(keys) <= np.arange(first, last)[:, None] + before
            self._places[key] = np.flatnonzero(causal)
        return self._places[key]
