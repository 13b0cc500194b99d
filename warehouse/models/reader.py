"""Runs a model over token sequences: a key-value cache that can go back."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError
from warehouse.models import limits as models
from warehouse.models.offload import device_of
from warehouse.models.probe import alike, as_rows, first, unwrapped
from warehouse.models.tree import Tree
from warehouse.models.weights import embedding_rows

#: Tokens of a tree that are read in one pass: a longer pass is no faster, and its attention grows
#: with the square.
TREE_TOKENS = 256


class Reader:
    """A model reading one sequence, with the cache of what it has read.

    Attributes:
        ids: tokens read so far.
        reach: tokens up to which every layer attends to all of them alike, as `models.reach`.

    Args:
        model: a causal language model of transformers; batch size 1.
        trees: whether it reads trees rightly, as `sharing` found.
        rewinds: whether its cache can go back to what sequences share, likewise.
    """

    def __init__(self, model: Any, *, trees: bool = False, rewinds: bool = True):
        self.model = model
        self._device = device_of(model)
        self.ids: list[int] = []
        self._trees = trees
        self._rewinds = rewinds
        self.reach = models.reach(model)
        self._embedded = embedding_rows(model) or math.inf
        self._cache: Any = None
        self._regimes: set[tuple[int, ...]] = (
            set()
        )  # rotary frequencies that the cache was filled with
        self._cache_name = models.cache_name(unwrapped(model))
        self._rotary = list(_dynamic_rotary(model))
        # Logits of one position instead of all, where the model can.
        self._can_limit_logits = (
            "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
        )

    def read(self, ids: list[int], *, all_logits: bool = False) -> Tensor:
        """Read tokens that follow those read so far, in one forward pass.

        Returns:
            (tokens, vocabulary) logits if `all_logits`, else (1, vocabulary) of the last token.
        """
        logits = self._forward(ids, logits=0 if all_logits else 1)
        self.ids = self.ids + list(ids)
        self._regimes.add(models.rotary_regime(self.model, len(self.ids)))
        return logits if all_logits else logits[-1:]

    def as_trees(self, sequences: Sequence[list[int]]) -> Iterator[Tree]:
        """Group whole sequences into trees of a pass each, named by their place in the list.

        A tree has the tokens past what the cache holds when it is made: read each, with
            `read_tree`, before asking
        for the next. Where the model cannot read several sequences in a pass, each is a tree of its
        own.
        """
        tree, regime = None, ()
        for name, ids in enumerate(sequences):
            its = models.rotary_regime(self.model, len(ids))
            if tree and (its != regime or not self._fits(*tree.grown(ids))):
                yield tree
                tree = None
            if tree is None:
                tree, regime = Tree(self._shareable(ids)), its
            tree.add(name, ids)
        if tree:
            yield tree

    def read_tree(self, tree: Tree) -> None:
        """Read the sequences of a tree in one pass; what all of them share stays in the cache."""
        self.rewind(tree.trunk)
        if len(tree.ends) == 1:
            self.read(tree.tokens)
            return
        sees, stem = tree.mask(), tree.stem()
        blocked = torch.zeros((1, 1, *sees.shape), dtype=self.model.dtype)
        blocked.masked_fill_(~sees, torch.finfo(self.model.dtype).min)
        self._forward(
            tree.tokens,
            logits=1,
            attention_mask=blocked.to(self._device),
            position_ids=torch.tensor([tree.positions], device=self._device),
        )
        self._regimes.add(models.rotary_regime(self.model, max(tree.positions) + 1))
        self.ids = self.ids + tree.tokens
        self.rewind(tree.trunk + stem)

    def _shareable(self, ids: list[int]) -> list[int]:
        """The tokens whose keys and values a sequence may use, as far as it begins with them."""
        if not self._rewinds or max(len(ids), len(self.ids)) > self.reach:
            return []
        if not self._regimes <= {models.rotary_regime(self.model, len(ids))}:
            return []
        return self.ids if _can_crop(self._cache) else []

    def _fits(self, trunk: int, tokens: int) -> bool:
        """Whether a tree can be read in a pass, over no more than the model attends to alike, or at all."""
        can = self._trees and (self._cache is None or _can_crop(self._cache))
        most = min(self.reach - 1, models.context_length(self.model) or math.inf)
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
        """One forward pass; gives (tokens, vocabulary) of the last `logits` tokens at least, 0 for all."""
        if max(ids) >= self._embedded:  # a tokenizer with more tokens, or a head that is padded
            raise AlabError(
                f"token {max(ids)} cannot be read: the model embeds {self._embedded} tokens",
                "The tokenizer is not the model's, or the model chose a token that only pads its head.",
            )
        if logits and self._can_limit_logits:
            options["logits_to_keep"] = logits
        if (
            self._cache is None
        ):  # dynamic scaling remembers the longest sequence until it sees a short one
            nothing = torch.zeros(1, 1, dtype=torch.long, device=self._device)
            for module, kind in self._rotary:
                module(nothing[..., None].to(self.model.dtype), nothing, **kind)
        output = self.model(
            torch.tensor([ids], device=self._device),
            use_cache=True,
            **{self._cache_name: self._cache},
            **options,
        )
        self._cache = models.cache_in(output)
        if self._cache is None:
            raise AlabError(
                f"{type(self.model).__name__} gives no key-value cache of the kind that transformers passes on",
                "It cannot be captured token by token.",
            )
        return output.logits[0]


def _dynamic_rotary(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """Rotary embeddings whose frequencies grow with the sequence, and how each is told for which kind of layer."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if isinstance(kind, str) and "dynamic" in kind:
                yield module, {} if layer_type is None else {"layer_type": layer_type}


def _can_crop(cache: Any) -> bool:
    """Whether a cache can forget its newest tokens: not a recurrent state, nor a window that has moved on."""
    layers = getattr(cache, "layers", None)
    if not layers or not hasattr(cache, "crop"):
        return False
    for layer in layers:
        if hasattr(layer, "conv_states") or hasattr(layer, "recurrent_states"):
            return False
        if getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window:
            return False
    return True


def sharing(
    model: Any, layer: nn.Module, tokens: list[int], plain: Tensor | None
) -> tuple[bool, bool]:
    """Whether a model reads trees rightly, and whether its cache goes back rightly; costs two short passes or four.

    A tree needs a mask and positions that are not those of one sequence: alibi has no such
        positions, some kinds of
    attention have no such mask. Where a model ignores either, some token's state moves by far more
    than rounding.

    Args:
        model: a causal language model of transformers.
        layer: its last decoder layer.
        tokens: tokens of a plain pass.
        plain: what the layer gave for them, (tokens, width).
    """
    shared, rest = tokens[:2], tokens[2:]
    others = (
        [*shared, *rest[::-1]],
        [*shared, *rest[3:], *rest[:3]],
    )  # one in the cache, one in the tree
    outputs: list[Tensor | None] = []
    handle = layer.register_forward_hook(
        lambda module, args, output: outputs.append(as_rows(first(output), first(output).shape[-2]))
    )

    def right(sequences: list[list[int]], trees: bool) -> bool:
        try:
            reader = Reader(model, trees=trees)
            reader.read(others[0])
            tree = next(reader.as_trees(sequences))
            reader.read_tree(tree)
            moved = (outputs[-1][-len(rest) :] - plain[2:]).norm(dim=1) / plain[2:].norm(dim=1)
        except Exception:  # whatever the model's own code does with what it does not expect
            return False
        alike = bool(
            (moved.float() < (1e-5 if torch.finfo(model.dtype).eps < 1e-6 else 0.05)).all()
        )
        return alike and len(tree.ends) == len(sequences) and tree.trunk == len(shared)

    try:
        with torch.no_grad():
            trees = right([others[1], tokens], trees=True)
            return trees, trees or right([tokens], trees=False)
    finally:
        handle.remove()


def decodes(model: Any, tokens: list[int], logits: Tensor) -> bool:
    """Whether a decode step over the cache gives what reading the same tokens at once gave.

    Args:
        model: a causal language model of transformers.
        tokens: some tokens.
        logits: (tokens, vocabulary) of one pass over them.
    """
    reader = Reader(model)
    try:
        with torch.no_grad():
            reader.read(tokens[:-1])
            step = reader.read(tokens[-1:])
    except AlabError:  # no cache, which is said where one is needed
        return True
    return bool(alike(step, logits[-1:]).all())
