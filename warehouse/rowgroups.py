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

    def without_tensors(self) -> "Rows":
        """The same rows by name only."""
        return Rows(self.prompt_id, self.step, self.kind, self.position, self.layer, {})


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
        self._buffers: dict[str, Tensor] = {}
        self._sites: set[str] = set()  # of the rows that the buffers hold
        self._waiting: list[tuple[Rows, int, int]] = []  # whose rows the buffers hold: rows, first, last + 1
        self._count = 0

    def add(self, rows: Rows) -> None:
        """Take rows: whole row groups are written, the rest is copied to buffers of this file.

        The model's own tensors are let go at once. Kept for their row group to fill, they would pin the memory
        between the caches that grow with every step, and the process would grow with them. A row group has the
        same sites in all its rows.
        """
        if self._count and set(rows.sites) != self._sites:
            self._flush()
        self._sites = set(rows.sites)
        start = 0
        while start < rows.count:
            take = min(self._group - self._count, rows.count - start)
            if take == self._group:
                self._write([(rows, start, start + take)], self._gathered(rows, start, take))
            else:
                for site, tensor in rows.sites.items():
                    self._buffer(site)[self._count : self._count + take].copy_(tensor[start : start + take])
                self._waiting.append((rows.without_tensors(), start, start + take))
                self._count += take
                if self._count == self._group:
                    self._flush()
            start += take

    def close(self) -> None:
        """Write what is left and finish the file."""
        if self._count:
            self._flush()
        self.parts.close()

    def _buffer(self, site: str) -> Tensor:
        if site not in self._buffers:
            self._buffers[site] = torch.empty(self._group, self._widths[site])
        return self._buffers[site]

    def _gathered(self, rows: Rows, start: int, count: int) -> dict[str, Tensor]:
        """Rows of each site as float32, in buffers that all files share."""
        values = {}
        for site, tensor in rows.sites.items():
            values[site] = self._scratch.get(site, count * self._widths[site]).view(count, -1)
            values[site].copy_(tensor[start : start + count])
        return values

    def _flush(self) -> None:
        """Write what the buffers hold."""
        self._write(self._waiting, {site: self._buffers[site][: self._count] for site in sorted(self._sites)})
        self._waiting = []
        self._count = 0

    def _write(self, pieces: list[tuple[Rows, int, int]], values: dict[str, Tensor]) -> None:
        """Write one row group; the values are rounded in place."""
        error = self._residual_error(values)
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
        self.parts.write(sum(lengths), columns)

    def _residual_error(self, values: dict[str, Tensor]) -> float | None:
        """Largest |hidden_out − hidden_in − contributions| of the rows; None where parts are missing."""
        if "hidden_in" not in values or "hidden_out" not in values or not {"attn_out", "mlp_down_out"} & set(values):
            return None
        difference = self._scratch.get("difference", values["hidden_out"].numel()).view_as(values["hidden_out"])
        torch.sub(values["hidden_out"], values["hidden_in"], out=difference)
        for site in ("attn_out", "mlp_down_out"):
            if site in values:
                difference.sub_(values[site])
        low, high = torch.aminmax(difference)
        return max(-float(low), float(high))


class AttentionFile:
    """One row per query position and head, with the causal half of the weights."""

    def __init__(self, staged: lake.StagedRun, layer: int, scratch: Scratch, stats: Stats):
        self.parts = Parts(staged, "attention", layer, parquet.attention_schema())
        self._scratch = scratch
        self._stats = stats.sites.setdefault((layer, "attention"), SiteStats())
        self._buffer: Tensor | None = None  # holds the weights of decode steps until there are enough
        self._waiting: list[tuple[Rows, int, int, int, int]] = []  # rows, heads, position, queries, keys of the first
        self._count = 0

    def add(self, rows: Rows) -> None:
        """Take the weights of a pass, (heads, tokens, keys); as in `RowFile`, no tensor of the model is kept."""
        heads, queries, keys = rows.attention.shape
        weights = rows.attention.float().numpy()
        before = keys - queries
        first = 0
        while first < queries:
            free = GROUP_VALUES - self._count
            last, values = first, 0
            while last < queries and values + heads * (before + last + 1) <= free:
                values += heads * (before + last + 1)
                last += 1
            if last == first and self._count:
                self._flush()
                continue
            if last == first:  # one query alone is more than a group
                last, values = first + 1, heads * (before + first + 1)
            whole = queries > 1 and self._count == 0  # written at once, so the shared buffer serves
            target = self._scratch.get("attention", max(GROUP_VALUES, values)) if whole else self._own(values)
            self._copy(weights, first, last, before, target[self._count :].numpy())
            piece = rows.without_tensors(), heads, rows.position + first, last - first, before + first + 1
            self._waiting.append(piece)
            self._count += values
            if queries > 1:
                self._flush(target)
            first = last

    def close(self) -> None:
        """Write what is left and finish the file."""
        self._flush()
        self.parts.close()

    @staticmethod
    def _copy(weights: np.ndarray, first: int, last: int, before: int, target: np.ndarray) -> None:
        """The causal half of some query rows, all heads of a query side by side, to the start of `target`."""
        heads, start = len(weights), 0
        for query in range(first, last):
            keys = before + query + 1
            np.copyto(target[start : start + heads * keys].reshape(heads, keys), weights[:, query, :keys])
            start += heads * keys

    def _own(self, values: int) -> Tensor:
        """This file's buffer, with room for so many more values."""
        size = max(GROUP_VALUES, self._count + values)
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(size)
        return self._buffer

    def _flush(self, buffer: Tensor | None = None) -> None:
        """Write what waits as one row group, from this file's buffer or the one given."""
        if not self._waiting:
            return
        source = (self._buffer if buffer is None else buffer)[: self._count]
        self._scratch.round(source, self._stats)
        counts = [heads * queries for _, heads, _, queries, _ in self._waiting]
        columns = {
            "prompt_id": np.repeat([rows.prompt_id for rows, *_ in self._waiting], counts),
            "step": np.repeat([rows.step for rows, *_ in self._waiting], counts),
            "head": np.concatenate([np.tile(np.arange(heads), n) for _, heads, _, n, _ in self._waiting]),
            "position": np.concatenate(
                [np.repeat(np.arange(position, position + n), heads) for _, heads, position, n, _ in self._waiting]
            ),
        }
        lengths = np.concatenate(
            [np.repeat(np.arange(keys, keys + n), heads) for _, heads, _, n, keys in self._waiting]
        )
        self.parts.write(sum(counts), columns | {"weights": (source.numpy(), lengths)})
        self._waiting = []
        self._count = 0
