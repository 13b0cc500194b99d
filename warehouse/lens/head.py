"""A model's head: the final norm and the unembedding that turn a residual stream into logits.

It is found by numbers and checked against the model's own logits, so that the logit lens and the
attribution of directions to tokens need no more of the model than this.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError, first_line
from warehouse.models import offload
from warehouse.models.probe import Call, Trace, identical, sample, trace
from warehouse.models.stack import find_stack

#: Tokens of the pass that a head is found with.
_TOKENS = 16

#: What comes after the unembedding: a factor of the logits, and a cap or None.
Finish = tuple[float, float | None]


@dataclass
class Head:
    """From a residual stream to logits, in float32 on the CPU.

    logits = cap(scale · (unembedding · norm(x) + bias)), where norm(x) = normed · weight + shift.

    Attributes:
        unembedding: (vocabulary, width).
        bias: (vocabulary,).
        weight: (width,) factors of the norm.
        shift: (width,) what the norm adds.
        centred: whether the norm takes off the mean first (LayerNorm; RMSNorm does not).
        eps: what the norm adds to the mean square; None where the model has no final norm.
        scale: factor of the logits.
        softcap: c in c · tanh(logits / c); None where the model has none.
        error: largest error of these logits against the model's own, relative to the largest logit.
        tokens: text of each token; None where unknown.
        model: the model it is of, and its GGUF file.
    """

    unembedding: Tensor
    bias: Tensor
    weight: Tensor
    shift: Tensor
    centred: bool
    eps: float | None
    scale: float = 1.0
    softcap: float | None = None
    error: float = 0.0
    tokens: list[str | None] | None = None
    model: str = ""

    def normed(self, x: Tensor) -> Tensor:
        """The final norm of (…, width) residual streams."""
        if self.eps is None:
            return x
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        size = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * size * self.weight + self.shift

    def logits(
        self, normed: Tensor, tokens: slice = slice(None), out: Tensor | None = None
    ) -> Tensor:
        """(rows, tokens) logits of (rows, width) normed streams; into `out` if given."""
        products = torch.mm(normed, self.unembedding[tokens].T, out=out)
        return self._finish(products, self.bias[tokens])

    def logits_of(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """(rows, 1) logits of one token for each row of (rows, width) normed streams."""
        products = (normed * self.unembedding[tokens]).sum(-1, keepdim=True)
        return self._finish(products, self.bias[tokens, None])

    def _finish(self, products: Tensor, bias: Tensor) -> Tensor:
        if self.has_bias:
            products.add_(bias)
        if self.scale != 1.0:
            products.mul_(self.scale)
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products

    @cached_property
    def has_bias(self) -> bool:
        """Whether the unembedding adds anything."""
        return bool(self.bias.any())


def extract(model: Any) -> Head:
    """Find a model's head with two passes over a few tokens.

    The norm is the one that turns what the last layer gave into what the unembedding read; factor
    and cap are numbers of the config with which the logits come out.

    Raises:
        AlabError: what lies between the last layer and the logits is not a norm, a linear map, a
            factor and a cap.
    """
    name = type(model).__name__
    linear = model.get_output_embeddings()
    if getattr(linear, "weight", None) is None:
        raise AlabError(f"{name} has no unembedding", "It has no logit lens.")
    probe = trace(model, sample(model, count=_TOKENS, seed=2))
    stack = find_stack(model, probe)
    last, call = stack.layers[-1], _unembedding(model, probe, linear)
    norms = _modules_between(probe, last, call)
    tolerance = max(1e-5, 8 * torch.finfo(model.dtype).eps)
    unembedding, bias = _values(model, linear, "weight"), _values(model, linear, "bias")
    assert unembedding is not None  # it has one: seen above
    bias = torch.zeros(len(unembedding)) if bias is None else bias
    stream, normed, logits = (t.float().cpu() for t in (last.output, call.inputs, stack.logits))
    candidates = _candidates(unembedding, bias, norms, stream.shape[1])
    head = min(candidates, key=lambda candidate: _error(candidate.normed(stream), normed))
    if not _error(head.normed(stream), normed) <= tolerance:
        raise AlabError(
            f"{name}: what lies between its last layer and its unembedding is neither nothing nor "
            "a single norm",
            "It has no logit lens.",
        )
    return _finished(head, head.normed(stream), logits, model, tolerance)


def _finished(head: Head, normed: Tensor, logits: Tensor, model: Any, tolerance: float) -> Head:
    """A head with the factor and the cap that give the model's own logits; refused if none do."""
    raw = head.logits(normed)
    best = min(_finishes(model.config), key=lambda finish: _error(_finish(raw, *finish), logits))
    for finish in ((1.0, None), best):
        head.scale, head.softcap = finish
        head.error = _error(head.logits(normed), logits)
        if head.error <= tolerance:
            return head
    raise AlabError(
        f"{type(model).__name__}: its final norm and unembedding give logits that are off by "
        f"{head.error:.1e} of the largest (rounding allows {tolerance:.1e})",
        "The model changes its logits in a way that alab does not know; it has no logit lens.",
    )


def _values(model: Any, linear: nn.Module, name: str) -> Tensor | None:
    try:
        return offload.values(linear, name)
    except (RuntimeError, NotImplementedError, OSError) as error:
        raise AlabError(
            f"{type(model).__name__}: the {name} of its unembedding cannot be read: "
            f"{first_line(error)}",
            "Where its parameters were moved to the disk, load the model anew.",
        ) from error


def _unembedding(model: Any, probe: Trace, linear: nn.Module) -> Call:
    """The last call of the unembedding."""
    if calls := [call for call in probe.of(linear) if call.reads]:
        return calls[-1]
    raise AlabError(f"{type(model).__name__} does not send its last layer through its unembedding")


def _modules_between(probe: Trace, last: Call, unembedding: Call) -> list[nn.Module]:
    """The modules that read what the last layer gave and give what the unembedding reads."""
    return [
        call.module
        for call in probe.calls
        if call.began > last.ended
        and identical(call.inputs, last.output)
        and identical(call.output, unembedding.inputs)
    ]


def _candidates(
    unembedding: Tensor, bias: Tensor, norms: list[nn.Module], width: int
) -> list[Head]:
    """Heads with no norm, and with each module as a norm of every kind that models have."""
    one, zero = torch.ones(width), torch.zeros(width)
    heads = [Head(unembedding, bias, one, zero, False, None)]
    for module in norms:
        weight, shift = offload.values(module, "weight"), offload.values(module, "bias")
        weights = [one] if weight is None else [weight, 1 + weight]
        numbers = (value for name, value in vars(module).items() if "eps" in name)
        epsilons = {value for value in numbers if isinstance(value, float)}
        heads += [
            Head(unembedding, bias, w, zero if shift is None else shift, centred, eps)
            for w in weights
            if w.shape == one.shape
            for centred in (False, True)
            for eps in epsilons or {1e-5, 1e-6, 0.0}
        ]
    return heads


def _finishes(config: Any) -> list[Finish]:
    """(scale, softcap) that a model may put on its logits, from the numbers of its config."""
    values = config.get_text_config().to_dict().values()
    finishes: list[Finish] = [(1.0, None)]
    for number in sorted({float(v) for v in values if type(v) in (int, float) and v > 0}):
        finishes += [(number, None), (1 / number, None), (1.0, number)]
    return finishes


def _finish(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    return raw * scale if softcap is None else torch.tanh(raw * scale / softcap) * softcap


def _error(values: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value."""
    if values.shape != expected.shape:
        return math.inf
    return float((values - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
