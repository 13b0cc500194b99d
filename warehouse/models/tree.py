"""Several token sequences as one tree, so that one forward pass reads them all.

A pass over a few tokens costs nearly what one over many does, since it reads every weight.
Sequences that begin alike meet in a tree: each token follows its parent, sees its ancestors alone,
and stands as deep as in its own sequence. That is *tree attention* (SpecInfer, arXiv 2305.09781); a
causal model that takes its mask and positions from outside gives a token in a tree what it gives it
alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from warehouse.models.chat import common_length


class Tree:
    """Sequences past what they share with a key-value cache; what two of them share is there once.

    Attributes:
        tokens: the tree's tokens, parents before children.
        positions: place of each in its sequence.
        ends: index of the last token of each sequence, by the sequence's name.
        trunk: how many tokens of the cache are seen, at the most.

    Args:
        cached: the tokens that the cache holds.
    """

    def __init__(self, cached: Sequence[int]):
        self._cached = cached
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.ends: dict[int, int] = {}
        self.trunk = 0
        #: Of the tokens; −1 − n for the first of a branch, which sees n tokens of the cache.
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, name: int, ids: Sequence[int]) -> None:
        """Grow by a sequence; its last token is read again where the cache has all of it."""
        shared, node, rest = self._follow(ids)
        self.trunk = max(self.trunk, shared)
        for position, token in enumerate(rest, len(ids) - len(rest)):
            self._children[node, token] = len(self.tokens)
            self._parents.append(node)
            node = len(self.tokens)
            self.tokens.append(token)
            self.positions.append(position)
        self.ends[name] = node

    def grown(self, ids: Sequence[int]) -> tuple[int, int]:
        """The trunk and the number of tokens that the tree would have with one more sequence."""
        shared, _, rest = self._follow(ids)
        return max(self.trunk, shared), len(self.tokens) + len(rest)

    def _follow(self, ids: Sequence[int]) -> tuple[int, int, Sequence[int]]:
        """What of a sequence the cache has, the node up to which it is known, and what is not."""
        shared = min(common_length(self._cached, ids), len(ids) - 1)
        node, at = -1 - shared, shared
        while at < len(ids) and (node, ids[at]) in self._children:
            node, at = self._children[node, ids[at]], at + 1
        return shared, node, ids[at:]

    def stem(self) -> int:
        """How many of the first tokens are in every branch, one after the other."""
        forks = (parent + 1 for i, parent in enumerate(self._parents) if i and parent != i - 1)
        return max(0, min(forks, default=len(self.tokens)))

    def mask(self) -> Tensor:
        """What each token sees of trunk and tree: (tokens, trunk + tokens) booleans."""
        sees = torch.zeros(len(self.tokens), self.trunk + len(self.tokens), dtype=torch.bool)
        for index, parent in enumerate(self._parents):
            if parent < 0:
                sees[index, : -1 - parent] = True
            else:
                sees[index] = sees[parent]
            sees[index, self.trunk + index] = True
        return sees
