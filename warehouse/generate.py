"""Runs a model over token sequences: a key-value cache that can go back, and the choice of the next token."""

import inspect
from typing import Any

import torch
from torch import Tensor

from warehouse import scenario
from warehouse.chat import common_length
from warehouse.errors import AlabError


class Reader:
    """A model reading one sequence, with the cache of what it has read.

    Attributes:
        ids: tokens read so far.

    Args:
        model: a causal language model of transformers; batch size 1.
    """

    def __init__(self, model: Any):
        self.model = model
        self.ids: list[int] = []
        self._cache: Any = None
        # Logits of one position instead of all, where the model can.
        self._can_limit_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def read(self, ids: list[int], *, all_logits: bool = False) -> Tensor:
        """Read tokens that follow those read so far, in one forward pass.

        Returns:
            (tokens, vocabulary) logits if `all_logits`, else (1, vocabulary) of the last token.
        """
        options = {} if all_logits or not self._can_limit_logits else {"logits_to_keep": 1}
        output = self.model(
            torch.tensor([ids], device=self.model.device), past_key_values=self._cache, use_cache=True, **options
        )
        self._cache = output.past_key_values
        self.ids = self.ids + list(ids)
        return output.logits[0] if all_logits else output.logits[0, -1:]

    def advance(self, ids: list[int]) -> Tensor:
        """Read a whole sequence, but only the tokens past what it shares with those read so far.

        Returns:
            (1, vocabulary) logits of its last token.
        """
        self.rewind(min(common_length(self.ids, ids), len(ids) - 1))
        return self.read(ids[len(self.ids) :])

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; where the cache cannot go back, all of them."""
        drop = len(self.ids) - length
        if drop == 0:
            return
        if length and _can_crop(self._cache):
            self._cache.crop(-drop)
            self.ids = self.ids[:length]
        else:
            self.ids, self._cache = [], None


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


class Sampler:
    """Chooses the next token: the most likely one, or a draw from a generator on the CPU.

    Args:
        options: the scenario's `generation`.
        seed: seed of the draw; equal seeds give equal tokens on equal logits, whatever the device.
    """

    def __init__(self, options: scenario.Generation, seed: int):
        self._options = options
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """The next token for (vocabulary,) logits."""
        options = self._options
        if options.greedy:
            return int(logits.argmax())
        probabilities = self.probabilities(logits)
        if not probabilities.isfinite().all():
            raise AlabError("no token can be drawn: the model's logits are not finite", "Use do_sample: false.")
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from: temperature, then top_k, then top_p.

        `top_p` keeps the most likely tokens up to and including the one that crosses the threshold.
        """
        options = self._options
        scores = logits.float().cpu() / options.temperature
        if options.top_k is not None:
            floor = scores.topk(min(options.top_k, len(scores))).values[-1]
            scores = scores.masked_fill(scores < floor, -torch.inf)
        probabilities = scores.softmax(-1)
        if options.top_p is not None:
            ordered, order = probabilities.sort(descending=True)
            before = ordered.cumsum(-1) - ordered
            probabilities[order[before >= options.top_p]] = 0.0
        return probabilities / probabilities.sum()
