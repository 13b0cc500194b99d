"""Several token sequences side by side in one pass, padded on the right.

A causal model gives a token what it gives it in its sequence alone, since padding comes after it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor


class Batch:
    """Whole sequences that one pass reads, and which of their tokens are recorded.

    Attributes:
        sequences: tokens of each.
        width: tokens of the longest.
        shape: (sequences, width) of the ids that the pass reads.
        spans: (sequence, first position, count) of consecutive tokens that are recorded; the rows
            of what is recorded are these, one after the other.
        rows: where these tokens are in tensors flattened to (sequences × width, …); None where
            they are all there are.

    Args:
        sequences: tokens of each; none is empty.
        places: positions to record of each sequence, rising; all where left out.
    """

    def __init__(
        self, sequences: Sequence[list[int]], places: Sequence[Sequence[int]] | None = None
    ):
        self.sequences = sequences
        self._lengths = torch.tensor(list(map(len, sequences)))
        self.width = max(map(len, sequences))
        self.shape = len(sequences), self.width
        self.spans = [
            (number, *span)
            for number, ids in enumerate(sequences)
            for span in _consecutive(range(len(ids)) if places is None else places[number])
        ]
        self.rows = self._rows(self.spans)
        #: `rows` on each device that they were asked for on: a copy there waits for the device.
        self._copies: dict[torch.device, Tensor] = {}

    @cached_property
    def tokens(self) -> Tensor | None:
        """Where all tokens that are no padding are, as `rows`."""
        return self._rows([(number, 0, len(ids)) for number, ids in enumerate(self.sequences)])

    @cached_property
    def ends(self) -> Tensor:
        """Where the last token of each sequence is, as `rows`."""
        return torch.arange(len(self.sequences)) * self.width + self._lengths - 1

    @property
    def ids(self) -> Tensor:
        """(sequences, width) ids; a sequence's last token is its padding: the model can read it."""
        return torch.tensor([ids + ids[-1:] * (self.width - len(ids)) for ids in self.sequences])

    @property
    def positions(self) -> Tensor:
        """(sequences, width) place of each token in its sequence."""
        return torch.arange(self.width).expand(self.shape)

    @property
    def mask(self) -> Tensor:
        """(sequences, width): 1 for a token, 0 for padding."""
        return (torch.arange(self.width) < self._lengths[:, None]).long()

    def pick(self, values: Tensor) -> Tensor:
        """The recorded rows of (sequences × width, …) values, as a copy where they are not all."""
        return values if self.rows is None else values[self._on(values.device, self.rows)]

    def means(self, values: Tensor) -> Tensor:
        """(sequences, width) float32 means over each sequence's tokens of such values."""
        grid = values.reshape(len(self.sequences), self.width, -1).float()
        if self.tokens is None:
            return grid.mean(1)
        inside = self.mask.to(values.device)[..., None]
        return torch.where(inside > 0, grid, 0.0).sum(1) / inside.sum(1)

    def pick_attention(self, weights: Tensor) -> Tensor:
        """(heads, rows, keys) weights of the recorded tokens, of (sequences, heads, width, width).

        Keys that no recorded token sees are left out, and so is all padding of one token alone.
        """
        if self.rows is None and len(self.sequences) == 1:
            return weights[0]
        rows = torch.arange(len(weights) * self.width) if self.rows is None else self.rows
        rows = self._on(weights.device, rows)
        keys = max((first + count for _, first, count in self.spans), default=0)
        return weights[rows // self.width, :, rows % self.width, :keys].transpose(0, 1)

    def _on(self, device: torch.device, rows: Tensor) -> Tensor:
        if device not in self._copies:
            self._copies[device] = rows.to(device)
        return self._copies[device]

    def _rows(self, spans: list[tuple[int, int, int]]) -> Tensor | None:
        if sum(count for _, _, count in spans) == len(self.sequences) * self.width:
            return None
        starts = ((number * self.width + first, count) for number, first, count in spans)
        rows = [row for start, count in starts for row in range(start, start + count)]
        return torch.tensor(rows, dtype=torch.long)


def _consecutive(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of rising places."""
    if len(places) and places[-1] - places[0] == len(places) - 1:
        yield places[0], len(places)
        return
    for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0]):
        numbers = [place for _, place in run]
        yield numbers[0], len(numbers)
