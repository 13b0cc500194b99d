"""Which tokens the rows of a tensor are of."""

from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass
class Piece:
    """Consecutive tokens of one prompt in one forward pass.

    Attributes:
        prompt_id: prompt within the run.
        step: forward pass of the prompt.
        kind: prefill or decode.
        position: position of the first token.
        count: how many tokens there are.
    """

    prompt_id: int
    step: int
    kind: str
    position: int
    count: int

    @property
    def end(self) -> int:
        """Position after the last token: as many keys does that token see."""
        return self.position + self.count

    def part(self, first: int, count: int) -> "Piece":
        """Some of the tokens."""
        return Piece(self.prompt_id, self.step, self.kind, self.position + first, count)


def positions_of(pieces: list[Piece]) -> np.ndarray:
    """The position of every row of some pieces."""
    if len(pieces) == 1:
        return np.arange(pieces[0].position, pieces[0].end)
    counts = np.array([piece.count for piece in pieces])
    starts = np.array([piece.position for piece in pieces]) - (counts.cumsum() - counts)
    return np.repeat(starts, counts) + np.arange(counts.sum())


class Cutter:
    """Cuts pieces into lists of so many rows each, from the first row to the last."""

    def __init__(self, pieces: list[Piece]):
        self._rest = deque(pieces)

    def next(self, count: int) -> list[Piece]:
        """Pieces of the next `count` rows."""
        pieces = []
        while count:
            piece = self._rest.popleft()
            if piece.count > count:
                self._rest.appendleft(piece.part(count, piece.count - count))
                piece = piece.part(0, count)
            pieces.append(piece)
            count -= piece.count
        return pieces
