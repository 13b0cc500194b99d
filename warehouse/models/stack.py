"""Which modules are the decoder's layers, and whether the model is one that can be captured.

The layers are the list of modules of which each reads what the one before gave, and through whose
last output alone the head's input comes, whatever a config says and however many towers stand
beside them. All of it is told by numbers.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError
from warehouse.models import limits, probe
from warehouse.models.probe import Call, Trace


@dataclass
class Stack:
    """A model's way from the token embedding to the logits.

    Attributes:
        layers: the one call of each decoder layer, in order.
        embedding: the call of the token embedding.
        head: the call that gave the logits.
        logits: (tokens, vocabulary), as the model returned them.
        reader: the call that read the last layer's output as it is; None where none did.
    """

    layers: list[Call]
    embedding: Call
    head: Call
    logits: Tensor
    reader: Call | None


def find_stack(model: Any, trace: Trace) -> Stack:
    """Find the layers, the embedding and the head in the trace of a pass, by another pass.

    Raises:
        AlabError: the model is not one that can be captured; the message says what is missing.
    """
    logits = _logits(model, trace)
    head = _head(model, trace, logits)
    layers = _layers(model, trace, head)
    embedding = trace.of(model.get_input_embeddings())
    if len(embedding) != 1 or not embedding[0].gives:
        raise refused(model, "its token embedding does not give one vector for each token")
    last = layers[-1]
    later = sorted((c for c in trace.calls if c.began > last.ended), key=lambda call: call.began)
    reader = next((call for call in later if probe.identical(call.bare_input, last.output)), None)
    return Stack(layers, embedding[0], head, logits, reader)


def refused(model: Any, why: str) -> AlabError:
    """The error for a model that cannot be captured."""
    return AlabError(
        f"{type(model).__name__} cannot be captured: {why}",
        "alab captures decoder-only causal language models with a language-model head.",
    )


def decoder_layers(model: Any) -> list[tuple[str, nn.Module]]:
    """Paths and modules of the decoder layers, in order, found as `find_stack` does."""
    stack = find_stack(model, probe.trace(model, probe.sample(model)))
    return [(call.path, call.module) for call in stack.layers]


def check_kind(model: Any) -> None:
    """Refuse what is no causal language model by its own account, before anything runs."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise AlabError(
            f"{type(model).__name__} is no model of transformers",
            "Give one that from_pretrained made.",
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise refused(model, "it is an encoder with a decoder")
    embedding = None
    with suppress(AttributeError, NotImplementedError):
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
    if embedding is None:
        raise refused(model, "it has no token embedding")


def check_causal(model: Any, trace: Trace, stack: Stack) -> None:
    """Make sure, by another pass, that no later token changes an earlier state.

    Raises:
        AlabError: one does, or the model puts tokens of its own before those it is given.
    """
    tokens = trace.tokens.clone()
    tokens[0, -1] = tokens[0, 0] if tokens[0, -1] != tokens[0, 0] else tokens[0, 1]
    with probe.outputs_of(call.module for call in stack.layers) as outputs:
        output = probe.forward(model, tokens, use_cache=True)
    pairs = [(outputs[call.module][-1], call.output) for call in stack.layers]
    for value, expected in [*pairs, (output.logits, stack.logits)]:
        rows = probe.as_rows(value, tokens.numel())
        if not rows.numel() or not probe.alike(rows, expected)[:-1].all():
            raise refused(model, "a later token changes what it computes for earlier ones")
    _check_cache(model, output, tokens.numel())


def _check_cache(model: Any, output: Any, count: int) -> None:
    """Refuse a cache that holds more than the tokens that were read."""
    length = 0
    with suppress(AttributeError, ValueError):  # no cache, or one of recurrent states alone
        length = limits.cache_in(output).get_seq_length()
    if length > count:
        why = f"its cache holds {length} tokens after {count} were read"
        raise refused(model, f"{why} (virtual tokens of an adapter?)")


def _logits(model: Any, trace: Trace) -> Tensor:
    """The (tokens, vocabulary) logits."""
    logits, count = getattr(trace.output, "logits", None), trace.tokens.numel()
    if not isinstance(logits, Tensor):
        raise refused(model, "it gives no logits")
    if logits.ndim != 3 or logits.shape[:2] != (1, count):
        raise refused(model, f"its logits are shaped {tuple(logits.shape)} for {count} tokens")
    if logits.isnan().any():
        raise AlabError(
            f"{type(model).__name__} cannot be captured: its logits are not numbers (NaN) already "
            "for a few tokens",
            "Its weights may be damaged, or its numbers too large for its dtype: "
            "try model.dtype: float32.",
        )
    vocabulary = model.config.get_text_config().vocab_size
    if logits.shape[-1] < vocabulary:
        classes = logits.shape[-1]
        raise refused(model, f"its logits are over {classes} classes, not over {vocabulary} tokens")
    return logits[0].detach()


def _head(model: Any, trace: Trace, logits: Tensor) -> Call:
    """The call whose output the logits are, but for a factor or a cap: a map that keeps order."""
    named = getattr(probe.unwrapped(model), "get_output_embeddings", lambda: None)()
    shaped = (c for c in trace.calls if c.reads and c.output.shape == logits.shape)
    calls = [call for call in shaped if _same_order(call.output, logits)]
    if not calls:
        raise refused(model, "no module of it gives the logits: it has no language-model head")
    return next((call for call in reversed(calls) if call.module is named), calls[-1])


def _same_order(output: Tensor, logits: Tensor) -> bool:
    """Whether logits rise wherever an output does.

    Those that the model never says (the least number) are left aside.
    """
    output, logits = output.float(), logits.float()
    unsaid = logits <= torch.finfo(logits.dtype).min / 2
    order = output.masked_fill(unsaid, -torch.inf).argsort(-1)
    steps = logits.masked_fill(unsaid, -torch.inf).gather(-1, order).diff(dim=-1)
    size = logits.masked_fill(unsaid, 0.0).abs().amax()
    return bool(size > 0) and not bool((steps < -1e-3 * size).any())


def _layers(model: Any, trace: Trace, head: Call) -> list[Call]:
    """The calls of the decoder layers.

    Of several lists that qualify it is the outermost: layers may be lists of parts themselves.
    Where none does, the error is about the longest.
    """
    named, kinds = model.named_modules(), nn.ModuleList | nn.Sequential
    lists = [(path, module) for path, module in named if isinstance(module, kinds) and len(module)]
    reasons: list[tuple[int, str]] = []
    for path, modules in sorted(lists, key=lambda item: item[0].count(".")):
        calls = [trace.of(module) for module in modules]
        if not any(calls) or max(call.ended for of in calls for call in of) > head.began:
            continue  # a tower that a text does not reach, or a part of the head
        reason = _broken(path, calls) or _bypassed(model, trace, head, calls[-1][0])
        if reason is None:
            return [call for (call,) in calls]
        reasons.append((-len(calls), reason))
    raise refused(model, min(reasons)[1] if reasons else "it has no list of decoder layers")


def _broken(path: str, calls: list[list[Call]]) -> str | None:
    """Why the calls of a list are not those of a decoder's layers; None where they may be."""
    for index, of in enumerate(calls):
        if len(of) != 1:
            times = "does not run" if not of else f"runs {len(of)} times"
            return f"{path}.{index} {times} in a pass over text"
        if not (of[0].reads and of[0].gives):
            return f"what {path}.{index} reads or gives is not one vector for each token"
        if index and not probe.identical(of[0].bare_input, calls[index - 1][0].output):
            return f"{path}.{index} does not read what {path}.{index - 1} gives"
    return None


def _bypassed(model: Any, trace: Trace, head: Call, last: Call) -> str | None:
    """Why the last layer's output is not all that the head's input is made of; None where it is.

    The last layer's outputs are given to the wrong tokens, by another pass: what is made of them
    alone moves along.
    """
    inputs: list[Tensor] = []

    def move(module: nn.Module, args: tuple, output: Any) -> Any:
        return probe.with_first(output, last.output.roll(1, 0))

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.append(probe.first_input(args, kwargs).detach().clone())

    hooks = (
        last.module.register_forward_hook(move),
        head.module.register_forward_pre_hook(note, with_kwargs=True),
    )
    with probe.hooked(hooks):
        probe.forward(model, trace.tokens, use_cache=False)
    rows = probe.as_rows(inputs[-1] if inputs else None, trace.tokens.numel())
    if rows.numel() and probe.alike(rows, head.inputs.roll(1, 0)).all():
        return None
    return f"the head's input does not come through {last.path} alone"
