"""Whole token sequences as one tree, in a pass of its own, so that a shared beginning is read once.

What a `Batch` is side by side, `Branches` are along a tree, as `Tree` is past a cache: each token
follows its parent and sees its ancestors alone. What is recorded of a sequence are the tokens on
its own path, in order.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from warehouse.models.chat import common_length

#: Tokens of a pass are filled up to a multiple of so many: few shapes, and those that fit kernels.
FILL = 32


class Branches:
    """Sequences that one pass reads as a tree, and which of their tokens are recorded.

    A sequence shares with the one before it what both begin with: sorted ones share the most.

    Attributes:
        sequences: tokens of each.
        shape: (1, tokens of the tree with padding) of the ids that the pass reads.
        paths: where the tokens of each sequence are in the tree.
        rows: where the recorded tokens are, sequence by sequence: one that several share is there
            once for each.
        tokens: where the tokens are that are no padding.

    Args:
        sequences: tokens of each; none is empty.
        places: positions to record of each sequence, rising; all where left out.
    """

    def __init__(
        self, sequences: Sequence[list[int]], places: Sequence[Sequence[int]] | None = None
    ):
        self.sequences = sequences
        self.paths: list[Tensor] = []
        self._shared: list[int] = []  # tokens of each that those before it have
        self._ids: list[int] = []
        before, path = list[int](), torch.arange(0)
        for ids in sequences:
            shared = common_length(before, ids)
            new = torch.arange(len(self._ids), len(self._ids) + len(ids) - shared)
            before, path = ids, torch.cat([path[:shared], new])
            self._ids += ids[shared:]
            self._shared.append(shared)
            self.paths.append(path)
        self.tokens = torch.arange(len(self._ids))
        self.shape = 1, filled(len(self._ids))
        some = map(range, map(len, sequences)) if places is None else places
        self._places = [torch.tensor(list(mine), dtype=torch.long) for mine in some]
        self.rows = torch.cat([p[at] for p, at in zip(self.paths, self._places, strict=True)])
        #: What was asked for on a device: a copy there waits for the device.
        self._copies: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def ends(self) -> Tensor:
        """Where the last token of each sequence is, as `rows`."""
        return torch.stack([path[-1] for path in self.paths])

    @property
    def ids(self) -> Tensor:
        """(1, tokens) ids; the last token is the padding: the model can read it."""
        return torch.tensor([self._ids + self._ids[-1:] * (self.shape[1] - len(self._ids))])

    @property
    def positions(self) -> Tensor:
        """(1, tokens) place of each in its sequences; of padding 0."""
        places = torch.zeros(self.shape, dtype=torch.long)
        for path in self.paths:
            places[0, path] = torch.arange(len(path))
        return places

    @property
    def mask(self) -> Tensor:
        """(1, 1, tokens, tokens) booleans: a token sees those before it on its path, and itself."""
        sees = torch.eye(self.shape[1], dtype=torch.bool)
        for path, shared in zip(self.paths, self._shared, strict=True):
            own = torch.arange(shared, len(path))
            sees[path[shared:, None], path] = torch.arange(len(path)) <= own[:, None]
        return sees[None, None]

    def pick(self, values: Tensor) -> Tensor:
        """The recorded rows of (tokens, …) values, as a copy."""
        return values[self._on(values.device, "rows")]

    def means(self, values: Tensor) -> Tensor:
        """(sequences, width) float32 means over each sequence's tokens of such values."""
        grid = values[self._on(values.device, "_grid")].float()
        inside = self._on(values.device, "_inside")[..., None]
        return torch.where(inside, grid, 0.0).sum(1) / inside.sum(1)

    def pick_attention(self, weights: Tensor) -> Tensor:
        """(heads, rows, keys) weights of the recorded tokens, of (1, heads, tokens, tokens).

        The keys are the tokens on a row's own path, in order: 0 for those after it, and as many as
        the last recorded token sees.
        """
        rows, keys, later = (self._on(weights.device, name) for name in ("rows", "_keys", "_later"))
        return weights[0][:, rows[:, None], keys].masked_fill(later, 0.0)

    @cached_property
    def _grid(self) -> Tensor:
        """(sequences, longest) where the tokens are; past a sequence's end, any."""
        return pad_sequence(self.paths, batch_first=True)

    @cached_property
    def _inside(self) -> Tensor:
        """(sequences, longest) whether a place of `_grid` is in its sequence."""
        lengths = torch.tensor([len(path) for path in self.paths])
        return torch.arange(self._grid.shape[1]) < lengths[:, None]

    @cached_property
    def _keys(self) -> Tensor:
        """(rows, keys) where the tokens are that stand on the path of each recorded one."""
        counts = torch.tensor([len(some) for some in self._places])
        keys = max((int(some[-1]) + 1 for some in self._places if len(some)), default=0)
        return self._grid[:, :keys].repeat_interleave(counts, 0)

    @cached_property
    def _later(self) -> Tensor:
        """(rows, keys) whether a key comes after the recorded token."""
        return torch.arange(self._keys.shape[1]) > torch.cat(self._places)[:, None]

    def _on(self, device: torch.device, name: str) -> Tensor:
        if (name, device) not in self._copies:
            self._copies[name, device] = getattr(self, name).to(device)
        return self._copies[name, device]


def filled(tokens: int) -> int:
    """Tokens of a pass over a tree of so many."""
    return -(-tokens // FILL) * FILL
