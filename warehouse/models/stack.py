"""Which modules are the decoder's layers, and whether the model is one that can be captured: told by numbers.

The layers are the list of modules of which each reads what the one before gave, and through whose
last output alone the head's input comes, whatever a config says and however many towers stand
beside them.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError
from warehouse.models import loading as models
from warehouse.models.probe import (
    Call,
    Trace,
    alike,
    as_rows,
    first,
    first_input,
    hooked,
    run,
    sample,
    trace,
    unwrapped,
    with_first,
)


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


def find_stack(model: Any, seen: Trace) -> Stack:
    """Find the layers, the embedding and the head in what a probe saw.

    Raises:
        AlabError: the model is not one that can be captured; the message says what is missing.
    """
    logits = _logits(model, seen)
    head = _head(model, seen, logits)
    layers, _ = _layers(model, seen, head)
    embedding = seen.of(model.get_input_embeddings())
    if len(embedding) != 1 or embedding[0].output is None:
        raise refused(model, "its token embedding does not give one vector for each token")
    last = layers[-1]
    readers = (c for c in sorted(seen.calls, key=lambda call: call.began) if c.began > last.ended)
    reader = next(
        (c for c in readers if c.given is not None and torch.equal(c.given, last.output)), None
    )
    return Stack(layers, embedding[0], head, logits, reader)


def refused(model: Any, why: str) -> AlabError:
    """The error for a model that cannot be captured."""
    return AlabError(
        f"{type(model).__name__} cannot be captured: {why}",
        "alab captures decoder-only causal language models with a language-model head.",
    )


def decoder_layers(model: Any) -> list[tuple[str, nn.Module]]:
    """Paths and modules of the decoder layers, in order, by one pass over a few tokens.

    Raises:
        AlabError: as `find_stack`.
    """
    return [
        (call.path, call.module) for call in find_stack(model, trace(model, sample(model))).layers
    ]


def check_kind(model: Any) -> None:
    """Refuse what is no causal language model by its own account, before anything runs.

    Raises:
        AlabError: it has an encoder, no embedding or no head.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise AlabError(
            f"{type(model).__name__} is no model of transformers",
            "Give one that from_pretrained made.",
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise refused(model, "it is an encoder with a decoder")
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if embedding is None:
        raise refused(model, "it has no token embedding")


def check_causal(model: Any, seen: Trace, stack: Stack) -> None:
    """Make sure, by another pass, that a later token changes no earlier state, and that the cache holds the tokens.

    Raises:
        AlabError: it does, or the model puts tokens of its own before those it is given.
    """
    tokens = seen.tokens.clone()
    tokens[0, -1] = tokens[0, 0] if tokens[0, -1] != tokens[0, 0] else tokens[0, 1]
    outputs: dict[int, Tensor] = {}

    def handles() -> Iterator[Any]:
        for index, call in enumerate(stack.layers):
            yield call.module.register_forward_hook(
                lambda module, args, output, index=index: outputs.__setitem__(
                    index, first(output).detach().clone()
                )
            )

    with hooked(handles):
        output = run(model, tokens, use_cache=True)
    pairs = [(outputs[index], call.output) for index, call in enumerate(stack.layers)]
    for value, expected in [*pairs, (output.logits, stack.logits)]:
        rows = as_rows(value, tokens.numel())
        if rows is None or not alike(rows, expected)[:-1].all():
            raise refused(model, "a later token changes what it computes for earlier ones")
    length = 0
    with suppress(AttributeError, ValueError):  # no cache, or one of recurrent states alone
        length = models.cache_in(output).get_seq_length()
    if length > tokens.numel():
        raise refused(
            model,
            f"its cache holds {length} tokens after {tokens.numel()} were read (virtual tokens of an adapter?)",
        )


def _logits(model: Any, seen: Trace) -> Tensor:
    """The (tokens, vocabulary) logits."""
    logits, count = getattr(seen.output, "logits", None), seen.tokens.numel()
    if not isinstance(logits, Tensor):
        raise refused(model, "it gives no logits")
    if logits.ndim != 3 or logits.shape[:2] != (1, count):
        raise refused(model, f"its logits are shaped {tuple(logits.shape)} for {count} tokens")
    if logits.isnan().any():
        raise AlabError(
            f"{type(model).__name__} cannot be captured: its logits are not numbers (NaN) already for a few tokens",
            "Its weights may be damaged, or its numbers too large for its dtype: try model.dtype: float32.",
        )
    vocabulary = model.config.get_text_config().vocab_size
    if logits.shape[-1] < vocabulary:
        raise refused(
            model, f"its logits are over {logits.shape[-1]} classes, not over {vocabulary} tokens"
        )
    return logits[0].detach()


def _head(model: Any, seen: Trace, logits: Tensor) -> Call:
    """The call whose output the logits are, up to a factor or a cap: a map that keeps their order."""
    named = (
        unwrapped(model).get_output_embeddings()
        if hasattr(model, "get_output_embeddings")
        else None
    )
    calls = [c for c in seen.calls if c.output is not None and c.output.shape == logits.shape]
    calls = [c for c in calls if c.inputs is not None and _same_order(c.output, logits)]
    own = [c for c in calls if c.module is named]
    if not calls:
        raise refused(model, "no module of it gives the logits: it has no language-model head")
    return own[-1] if own else calls[-1]


def _same_order(output: Tensor, logits: Tensor) -> bool:
    """Whether logits rise wherever an output does; those that the model never says (the least number) aside."""
    output, logits = output.float(), logits.float()
    said = logits > torch.finfo(logits.dtype).min / 2
    order = output.masked_fill(~said, -torch.inf).argsort(-1)
    values = logits.masked_fill(~said, -torch.inf).gather(-1, order)
    size = logits.masked_fill(~said, 0.0).abs().amax()
    steps = values.diff(dim=-1)
    return bool(size > 0) and not bool((steps < -1e-3 * size).any())


def _layers(model: Any, seen: Trace, head: Call) -> tuple[list[Call], str]:
    """The calls of the decoder layers and the path of their list.

    Of several lists that qualify it is the outermost: layers may be lists of parts themselves.
    """
    reasons: list[tuple[int, str]] = []
    lists = [
        (path, m)
        for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)
    ]
    for path, modules in sorted(lists, key=lambda item: item[0].count(".")):
        calls = [seen.of(module) for module in modules]
        if not any(calls) or max(call.ended for of in calls for call in of) > head.began:
            continue  # a tower that a text does not reach, or a part of the head
        reason = _broken(path, calls)
        if reason is None and not _all_comes_through(model, seen, head, last := calls[-1][0]):
            reason = f"the head's input does not come through {last.path} alone"
        if reason is None:
            return [of[0] for of in calls], path
        reasons.append((-len(calls), reason))
    raise refused(model, min(reasons)[1] if reasons else "it has no list of decoder layers")


def _broken(path: str, calls: list[list[Call]]) -> str | None:
    """Why the calls of a list are not those of a decoder's layers; None where they may be."""
    for index, of in enumerate(calls):
        if len(of) != 1:
            times = "does not run" if not of else f"runs {len(of)} times"
            return f"{path}.{index} {times} in a pass over text"
        if of[0].inputs is None or of[0].output is None:
            return f"what {path}.{index} reads or gives is not one vector for each token"
        if index and not torch.equal(of[0].given, calls[index - 1][0].output):
            return f"{path}.{index} does not read what {path}.{index - 1} gives"
    return None


def _all_comes_through(model: Any, seen: Trace, head: Call, last: Call) -> bool:
    """Whether the head's input moves along when the last layer's outputs are given to the wrong tokens."""
    found: list[Tensor] = []

    def handles() -> Iterator[Any]:
        yield last.module.register_forward_hook(
            lambda module, args, output: with_first(output, last.output.roll(1, 0))
        )
        yield head.module.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(first_input(args, kwargs).detach().clone()),
            with_kwargs=True,
        )

    with hooked(handles):
        run(model, seen.tokens, use_cache=False)
    rows = as_rows(found[-1], seen.tokens.numel()) if found else None
    return rows is not None and bool(alike(rows, head.inputs.roll(1, 0)).all())
