"""One forward pass over a few tokens that records what every submodule of every layer takes and gives."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One call of a module during the probe; tensors are (tokens, width) copies.

    Attributes:
        path: path of the module in the model.
        module: the module.
        inputs: its first input; None where that is not one vector per token.
        output: its first output, likewise.
        weights: whether it returns attention weights.
        changed: sides (`input`, `output`) whose tensor the model changed in place later.
    """

    path: str
    module: nn.Module
    inputs: Tensor | None = None
    output: Tensor | None = None
    weights: bool = False
    changed: set[str] = field(default_factory=set)


def record(model: Any, layers: list[tuple[str, nn.Module]], tokens: Tensor) -> tuple[list[list[Call]], list[Call]]:
    """Run the model once on (1, tokens) ids.

    Returns:
        Per layer, the calls of its submodules in the order in which they ended; and the calls of the layers.
    """
    count = tokens.numel()
    heads = model.config.get_text_config().num_attention_heads
    calls: list[list[Call]] = [[] for _ in layers]
    ends = [Call(path, layer) for path, layer in layers]
    watched: list[tuple[Call, str, Tensor, int]] = []  # tensors and their versions, which in-place changes raise

    def watch(call: Call, side: str, value: Any) -> Tensor | None:
        raw = first(value)
        rows = as_rows(raw, count)
        if rows is None:
            return None
        watched.append((call, side, raw, raw._version))
        return rows.clone()

    def on_submodule(index: int, path: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            call = Call(path, module, weights=_has_weights(output, heads, count))
            call.inputs = watch(call, "input", _first_input(args, kwargs))
            call.output = watch(call, "output", output)
            calls[index].append(call)

        return hook

    def on_entry(index: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            ends[index].inputs = watch(ends[index], "input", _first_input(args, kwargs))

        return hook

    def on_exit(index: int):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            ends[index].output = watch(ends[index], "output", output)

        return hook

    handles = []
    try:
        for index, (path, layer) in enumerate(layers):
            for name, module in layer.named_modules():
                if name:
                    hook = on_submodule(index, f"{path}.{name}")
                    handles.append(module.register_forward_hook(hook, with_kwargs=True))
            handles.append(layer.register_forward_pre_hook(on_entry(index), with_kwargs=True))
            handles.append(layer.register_forward_hook(on_exit(index)))
        with torch.no_grad():
            model(tokens.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for call, side, raw, version in watched:
        if raw._version != version:
            call.changed.add(side)
    return calls, ends


def first(value: Any) -> Any:
    """A module's output, or the first of several."""
    return value[0] if isinstance(value, tuple | list) and value else value


def as_rows(value: Any, tokens: int) -> Tensor | None:
    """A tensor as (tokens, width); None where it has not that form."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return None
    return value.reshape(tokens, -1) if value.numel() == tokens * value.shape[-1] else None


def _first_input(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def _has_weights(output: Any, heads: int, count: int) -> bool:
    """Whether a module returns causal attention weights, (1, heads, tokens, tokens)."""
    for value in output if isinstance(output, tuple | list) else ():
        if isinstance(value, Tensor) and value.shape == (1, heads, count, count) and value.is_floating_point():
            table = value.float()
            if (table >= 0).all() and (table.sum(-1) < 1.01).all() and not table.triu(1).any():
                return True
    return False
