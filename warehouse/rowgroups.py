"""Rounds row groups and appends them to part files."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warehouse import lake, parquet
from warehouse.gather import AttentionGroup, RowGroup
from warehouse.pages import PageWriter

#: A part file that has grown past this is closed, and another begun.
PART_BYTES = 256 << 20

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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

    def rounded(self, name: str, values: Tensor, stats: SiteStats) -> tuple[Tensor, float]:
        """Float32 values in the stored precision, and their largest finite absolute value.

        NaN and infinities stay as they are, and so does what is out of range; both are counted. The result is
        `values` where nothing is rounded, else the buffer `name`.
        """
        low, high = (float(end) for end in torch.aminmax(values))
        largest = max(-low, high)
        if largest <= self.limit and self.dtype == torch.float32:
            return values, largest
        result = self.get(name, values.numel()).view(values.shape)
        if largest <= self.limit:
            short = self.get("short", values.numel(), self.dtype).view(values.shape)
            return result.copy_(short.copy_(values)), largest
        finite = values.isfinite()
        outside = finite & (values.abs() > self.limit)
        stats.nonfinite += int((~finite).sum())
        stats.out_of_range += int(outside.sum())
        result.copy_(torch.where(outside | ~finite, values, values.to(self.dtype).float()))
        return result, float(values[finite].abs().max()) if finite.any() else 0.0


class Files:
    """The part files of a run's bulky datasets. Several threads may write to it, but one to a file at a time.

    Args:
        staged: the run being written.
        widths: per layer (None for embeddings and logits) the width of each site that will come.
    """

    def __init__(self, staged: lake.StagedRun, widths: dict[int | None, dict[str, int]]):
        self.stats = Stats()
        self._staged = staged
        self._widths = widths
        self._parts: dict[tuple[str, int | None], Parts] = {}

    def write(self, group: RowGroup | AttentionGroup, scratch: Scratch) -> None:
        """Append a row group to its file, with the calling thread's buffers."""
        if group.file not in self._parts:
            self._parts[group.file] = Parts(self._staged, *group.file, self._schema(*group.file))
        columns = _attention_columns if isinstance(group, AttentionGroup) else _row_columns
        self._parts[group.file].write(columns(group, scratch, self.stats))

    def close(self) -> None:
        """Finish the files."""
        for parts in self._parts.values():
            parts.close()

    def abandon(self) -> None:
        """Let go of the files after an error."""
        for parts in self._parts.values():
            parts.abandon()

    def _schema(self, dataset: str, layer: int | None) -> Any:
        if dataset == "attention":
            return parquet.attention_schema()
        widths = self._widths[layer]
        return parquet.output_schema(widths) if layer is None else parquet.activation_schema(widths)


class Parts:
    """The part files of one layer in one dataset; named by their steps once those are known."""

    def __init__(self, staged: lake.StagedRun, dataset: str, layer: int | None, schema: Any):
        self._staged = staged
        self._dataset = dataset
        self._schema = schema
        self._folder = [] if layer is None else [f"layer={layer:02d}"]
        self._number = 0
        self._writer: PageWriter | None = None

    def write(self, columns: dict[str, Any]) -> None:
        """Append one row group; `columns` as `PageWriter.write` takes them."""
        if self._writer is None:
            self._open = self._staged.path(self._dataset, *self._folder, f".part-{self._number}.parquet")
            self._open.parent.mkdir(parents=True, exist_ok=True)
            self._writer = PageWriter(self._open, self._schema)
            self._steps = []
        self._writer.write(len(columns["step"]), columns)
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


def _row_columns(group: RowGroup, scratch: Scratch, stats: Stats) -> dict[str, Any]:
    """The columns of activations, or of embeddings and logits, rounded."""
    values = {site: tensor.float() for site, tensor in group.sites.items()}
    error = _residual_error(values, scratch)
    columns: dict[str, Any] = {}
    for site, block in values.items():
        found = stats.sites.setdefault((group.layer, site), SiteStats())
        block, largest = scratch.rounded(site, block, found)
        columns[site] = block.numpy()
        if site == "hidden_out" and error is not None:
            before = stats.residual.get(group.layer, (0.0, 0.0))
            stats.residual[group.layer] = max(before[0], error), max(before[1], largest)
    counts = [piece.count for piece in group.pieces]
    return columns | {
        "prompt_id": np.repeat([piece.prompt_id for piece in group.pieces], counts),
        "step": np.repeat([piece.step for piece in group.pieces], counts),
        "position": np.concatenate([piece.position + np.arange(piece.count) for piece in group.pieces]),
        "kind": [piece.kind for piece in group.pieces for _ in range(piece.count)],
    }


def _residual_error(values: dict[str, Tensor], scratch: Scratch) -> float | None:
    """Largest |hidden_out − hidden_in − contributions| of the rows; None where parts are missing."""
    if "hidden_in" not in values or "hidden_out" not in values or not {"attn_out", "mlp_down_out"} & set(values):
        return None
    difference = scratch.get("difference", values["hidden_out"].numel()).view_as(values["hidden_out"])
    torch.sub(values["hidden_out"], values["hidden_in"], out=difference)
    for site in ("attn_out", "mlp_down_out"):
        if site in values:
            difference.sub_(values[site])
    low, high = torch.aminmax(difference)
    return max(-float(low), float(high))


def _attention_columns(group: AttentionGroup, scratch: Scratch, stats: Stats) -> dict[str, Any]:
    """The columns of attention, rounded: rows by position, then head."""
    heads, pieces = group.heads, [piece for piece, _ in group.pieces]
    keys = np.concatenate([sees + np.arange(piece.count) for piece, sees in group.pieces])
    weights = group.weights
    if weights.ndim == 3:
        weights = scratch.get("causal", heads * int(keys.sum()))
        _copy_causal(group.weights, keys, weights.numpy())
    weights, _ = scratch.rounded(
        "attention", weights, stats.sites.setdefault((group.layer, "attention"), SiteStats())
    )
    counts = [heads * piece.count for piece in pieces]
    return {
        "prompt_id": np.repeat([piece.prompt_id for piece in pieces], counts),
        "step": np.repeat([piece.step for piece in pieces], counts),
        "head": np.tile(np.arange(heads), len(keys)),
        "position": np.repeat(np.concatenate([p.position + np.arange(p.count) for p in pieces]), heads),
        "weights": (weights.numpy(), np.repeat(keys, heads)),
    }


def _copy_causal(weights: Tensor, keys: np.ndarray, target: np.ndarray) -> None:
    """The first `keys[i]` weights of token i, all heads of a token side by side, from (heads, tokens, keys)."""
    source, heads, start = weights.float().numpy(), len(weights), 0
    for token, count in enumerate(keys.tolist()):
        end = start + heads * count
        np.copyto(target[start:end].reshape(heads, count), source[:, token, :count])
        start = end
