"""Runs a model over token sequences: one and its key-value cache, trees of them, or batches."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError
from warehouse.models import limits
from warehouse.models.batch import Batch
from warehouse.models.branches import Branches
from warehouse.models.offload import device_of
from warehouse.models.probe import unwrapped
from warehouse.models.tree import Tree
from warehouse.models.weights import embedding_rows

#: Tokens of a tree that are read in one pass: a longer pass is no faster, and its attention grows
#: with the square.
TREE_TOKENS = 256


class Reader:
    """A model reading a sequence, with the cache of what it has read, or several in a pass.

    Attributes:
        ids: tokens read so far.
        reach: tokens up to which every layer attends to all of them alike, as `limits.reach`.

    Args:
        model: a causal language model of transformers.
        trees: whether it reads trees rightly, as `sharing.trees_and_rewinds` shows.
        rewinds: whether its cache can go back to what sequences share, likewise.
    """

    def __init__(self, model: Any, *, trees: bool = False, rewinds: bool = True):
        self.model = model
        self._device = device_of(model)
        self.ids: list[int] = []
        self._trees, self._rewinds = trees, rewinds
        self.reach = limits.reach(model)
        self._embedded = embedding_rows(model) or math.inf
        self._cache: Any = None
        self._regimes: set[tuple[int, ...]] = set()  # rotary frequencies the cache was filled with
        self._cache_name = limits.cache_name(unwrapped(model))
        self._rotary = list(_dynamic_rotary(model))
        options = inspect.signature(unwrapped(model).forward).parameters
        self._can_limit_logits = "logits_to_keep" in options  # to some positions instead of all
        self._takes_positions = "position_ids" in options

    def read(self, ids: list[int], *, all_logits: bool = False) -> Tensor:
        """Read tokens that follow those read so far, in one forward pass.

        Returns:
            (tokens, vocabulary) logits if `all_logits`, else (1, vocabulary) of the last token.
        """
        logits = self._forward(ids, logits=0 if all_logits else 1)
        self.ids = self.ids + list(ids)
        self._regimes.add(limits.rotary_regime(self.model, len(self.ids)))
        return logits if all_logits else logits[-1:]

    def as_trees(self, sequences: Sequence[list[int]]) -> Iterator[Tree]:
        """Group whole sequences into trees of a pass each, named by their place in the list.

        A tree has the tokens past what the cache holds when it is made: read each, with
        `read_tree`, before asking for the next. Where the model cannot read several sequences in a
        tree, each is one of its own.
        """
        tree: Tree | None = None
        regime: tuple[int, ...] = ()
        for name, ids in enumerate(sequences):
            own = limits.rotary_regime(self.model, len(ids))
            if tree and (own != regime or not self._fits(*tree.grown(ids))):
                yield tree
                tree = None
            if tree is None:
                tree, regime = Tree(self._shareable(ids)), own
            tree.add(name, ids)
        if tree:
            yield tree

    def read_tree(self, tree: Tree) -> None:
        """Read the sequences of a tree in one pass; what all of them share stays in the cache."""
        self.rewind(tree.trunk)
        if len(tree.ends) == 1:
            self.read(tree.tokens)
            return
        self._forward(
            tree.tokens,
            logits=1,
            attention_mask=self._blocked(tree.mask()[None, None]),
            position_ids=torch.tensor([tree.positions], device=self._device),
        )
        self._regimes.add(limits.rotary_regime(self.model, max(tree.positions) + 1))
        self.ids = self.ids + tree.tokens
        self.rewind(tree.trunk + tree.stem())

    def read_batch(self, batch: Batch | Branches, *, all_logits: bool = False) -> Tensor:
        """Read whole sequences in one pass; what was read before is forgotten, no cache is kept.

        Whether the model does that rightly, `sharing.batches` shows, of either kind of batch.

        Returns:
            (rows, vocabulary) logits of the tokens that the batch records if `all_logits`, else
            (sequences, vocabulary) of each sequence's last.

        Raises:
            AlabError: a token cannot be read, or the model turns the keys of the longer sequences
                by other angles than those of the shorter.
        """
        self.rewind(0)
        lengths = [len(ids) for ids in batch.sequences]
        self._check_ids(max(map(max, batch.sequences)))
        if len({limits.rotary_regime(self.model, length) for length in lengths}) > 1:
            raise AlabError(
                f"sequences of {min(lengths)} to {max(lengths)} tokens cannot be read in one pass: "
                f"{type(self.model).__name__} scales its rotary embeddings by the longest",
                "Read those on either side of the length that it was trained with apart.",
            )
        self._forget_length()
        rows = batch.rows if all_logits else batch.ends
        width, mask = batch.shape[1], batch.mask
        rows = torch.arange(batch.shape[0] * width) if rows is None else rows
        places, columns = (rows % width).unique(return_inverse=True)
        options: dict[str, Any] = {}
        if self._can_limit_logits and len(places) < width:
            options["logits_to_keep"] = places.to(self._device)
        if self._takes_positions:
            options["position_ids"] = batch.positions.to(self._device)
        logits = self.model(
            batch.ids.to(self._device),
            attention_mask=mask.to(self._device) if mask.ndim == 2 else self._blocked(mask),
            use_cache=False,
            **options,
        ).logits
        # A model may take the option and give all of them.
        columns = columns if logits.shape[1] == len(places) else rows % width
        return logits[rows // width, columns]

    def _blocked(self, sees: Tensor) -> Tensor:
        """What a model adds to its attention, of what each token sees."""
        blocked = torch.zeros(sees.shape, dtype=self.model.dtype)
        return blocked.masked_fill_(~sees, torch.finfo(blocked.dtype).min).to(self._device)

    def _shareable(self, ids: list[int]) -> list[int]:
        """The tokens whose keys and values a sequence may use, as far as it begins with them."""
        if not self._rewinds or max(len(ids), len(self.ids)) > self.reach:
            return []
        if not self._regimes <= {limits.rotary_regime(self.model, len(ids))}:
            return []
        return self.ids if _can_crop(self._cache) else []

    def _fits(self, trunk: int, tokens: int) -> bool:
        """Whether a tree can be read in a pass, over no more than the model attends to alike."""
        can = self._trees and (self._cache is None or _can_crop(self._cache))
        most = limits.tree_tokens(self.model)
        return can and tokens <= TREE_TOKENS and trunk + tokens <= most

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; where the cache cannot go back, all of them."""
        drop = len(self.ids) - length
        if length and _can_crop(self._cache):
            if drop:
                self._cache.crop(-drop)
            self.ids = self.ids[:length]
        elif drop or not length:
            self.ids, self._cache, self._regimes = [], None, set()

    def _forward(self, ids: list[int], logits: int, **options: Any) -> Tensor:
        """One forward pass; gives the logits of the last so many tokens at least, 0 for all."""
        self._check_ids(max(ids))
        if logits and self._can_limit_logits:
            options["logits_to_keep"] = logits
        if self._cache is None:
            self._forget_length()
        output = self.model(
            torch.tensor([ids], device=self._device),
            use_cache=True,
            **{self._cache_name: self._cache},
            **options,
        )
        self._cache = limits.cache_in(output)
        if self._cache is None:
            name = type(self.model).__name__
            raise AlabError(
                f"{name} gives no key-value cache of the kind that transformers passes on",
                "It cannot be captured token by token.",
            )
        return output.logits[0]

    def _check_ids(self, largest: int) -> None:
        if largest >= self._embedded:  # a tokenizer with more tokens, or a head that is padded
            raise AlabError(
                f"token {largest} cannot be read: the model embeds {self._embedded} tokens",
                "The tokenizer is not the model's, or the model chose a token that only pads its "
                "head.",
            )

    def _forget_length(self) -> None:
        """Show dynamic rotary embeddings a short sequence: they remember the longest until then."""
        nothing = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        for module, kind in self._rotary:
            module(nothing[..., None].to(self.model.dtype), nothing, **kind)


def _dynamic_rotary(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """Rotary embeddings that scale with the sequence, each with the layers that it is asked for."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if isinstance(kind, str) and "dynamic" in kind:
                yield module, {} if layer_type is None else {"layer_type": layer_type}


def _can_crop(cache: Any) -> bool:
    """Whether a cache can forget its newest tokens: no recurrent state, no window that moved on."""
    layers = getattr(cache, "layers", None)
    if not layers or not hasattr(cache, "crop"):
        return False
    return not any(
        hasattr(layer, "conv_states")
        or hasattr(layer, "recurrent_states")
        or (getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window)
        for layer in layers
    )
