"""Appends row groups to part files."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from warehouse.capture.pieces import Piece, positions_of
from warehouse.capture.rowgroups import AttentionGroup, RowGroup
from warehouse.lake.parts import Parts
from warehouse.lake.staging import Shard, StagedRun


class Scratch:
    """Buffers that a thread uses again: touching fresh memory costs more than filling it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, count: int) -> Tensor:
        """A flat float32 buffer of `count` values; its content is whatever was there."""
        if name not in self._buffers or self._buffers[name].numel() < count:
            self._buffers[name] = torch.empty(count)
        return self._buffers[name][:count]

    def widened(self, name: str, values: Tensor) -> Tensor:
        """Values as float32: themselves, or a copy in the buffer `name`."""
        if values.dtype == torch.float32:
            return values
        return self.get(name, values.numel()).view(values.shape).copy_(values)


class Files:
    """The part files of a run's bulky datasets; several threads write, to a file one at a time.

    Args:
        staged: the run being written.
        widths: per layer (None for embeddings and logits) the width of each site that will come.
    """

    def __init__(self, staged: StagedRun | Shard, widths: dict[int | None, dict[str, int]]):
        self._staged = staged
        self._widths = widths
        self._parts: dict[tuple[str, int | None], Parts] = {}

    def write(self, group: RowGroup | AttentionGroup, scratch: Scratch) -> None:
        """Append a row group to its file, with the calling thread's buffers."""
        if group.file not in self._parts:
            widths = self._widths[group.file[1]]
            self._parts[group.file] = Parts(self._staged, *group.file, widths)
        if isinstance(group, AttentionGroup):
            columns = _attention_columns(group, scratch)
        else:
            columns = _row_columns(group, scratch)
        self._parts[group.file].write(columns)

    def close(self) -> None:
        """Finish the files."""
        for parts in self._parts.values():
            parts.close()

    def abandon(self) -> None:
        """Let go of the files after an error."""
        for parts in self._parts.values():
            parts.abandon()


def _names(pieces: list[Piece], each: int = 1) -> dict[str, Any]:
    """The columns that say which token a row is of, each token `each` times."""
    counts = [each * piece.count for piece in pieces]
    return {
        "prompt_id": np.repeat([piece.prompt_id for piece in pieces], counts),
        "step": np.repeat([piece.step for piece in pieces], counts),
        "position": np.repeat(positions_of(pieces), each),
    }


def _row_columns(group: RowGroup, scratch: Scratch) -> dict[str, Any]:
    """The columns of activations, or of embeddings and logits."""
    vectors = {site: scratch.widened(site, values).numpy() for site, values in group.sites.items()}
    kinds = [piece.kind for piece in group.pieces for _ in range(piece.count)]
    return vectors | _names(group.pieces) | {"kind": kinds}


def _attention_columns(group: AttentionGroup, scratch: Scratch) -> dict[str, Any]:
    """The columns of attention: rows by position, then head."""
    heads, keys = group.heads, positions_of(group.pieces) + 1
    weights = scratch.widened("attention", group.weights).numpy()
    if weights.ndim == 3:
        flat = scratch.get("causal", heads * int(keys.sum())).numpy()
        _copy_causal(weights, keys, flat)
        weights = flat
    return _names(group.pieces, heads) | {
        "head": np.tile(np.arange(heads), len(keys)),
        "weights": (weights, np.repeat(keys, heads)),
    }


def _copy_causal(weights: np.ndarray, keys: np.ndarray, target: np.ndarray) -> None:
    """The first `keys[i]` of (heads, tokens, keys) weights for token i, its heads side by side."""
    heads, start = len(weights), 0
    for token, count in enumerate(keys.tolist()):
        end = start + heads * count
        np.copyto(target[start:end].reshape(heads, count), weights[:, token, :count])
        start = end
