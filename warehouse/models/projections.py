"""Queries, keys and values: separate projections by name and width, fused ones by comparing with the cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.models import loading as models
from warehouse.models.ports import LayerSites, Port
from warehouse.models.probe import Call, hooked, run, sample
from warehouse.models.sublayers import linear_calls

#: Names that models give to separate projections of the attention.
_PROJECTIONS = {
    "q": ("q_proj", "query", "q_lin", "wq", "to_q"),
    "k": ("k_proj", "key", "k_lin", "wk", "to_k"),
    "v": ("v_proj", "value", "v_lin", "wv", "to_v"),
}
#: Single tokens of the second probe, which tells the parts of a fused projection apart.
_FUSED_TOKENS = 24


def attention_path(calls: list[Call]) -> str | None:
    """Path of the attention: the module that returns its weights, else the outermost one called an attention."""
    for call in calls:
        if call.weights:
            return call.path
    named = [c.path for c in calls if "attention" in type(c.module).__name__.lower()]
    return min(named, key=len) if named else None


def find_projections(
    model: Any, config: Any, layers: list[LayerSites], calls: list[list[Call]]
) -> None:
    """Find q, k and v in each layer, given the calls of its submodules."""
    fused: dict[int, Call] = {}
    for index, (site, inside) in enumerate(zip(layers, calls, strict=True)):
        attention = attention_path(inside)
        linears = [
            c for c in linear_calls(inside) if attention and c.path.startswith(attention + ".")
        ]
        named = {
            s: [c for c in linears if c.path.rpartition(".")[2] in names]
            for s, names in _PROJECTIONS.items()
        }
        wider = [c for c in linears if c.output.shape[1] > c.inputs.shape[1]]
        if all(len(matches) == 1 for matches in named.values()):
            module = next(c.module for c in inside if c.path == attention)
            _take_separate(
                site, {name: matches[0] for name, matches in named.items()}, module, config
            )
        elif len(wider) == 1 and not any(named.values()):
            fused[index] = wider[0]
        else:
            site.reasons |= dict.fromkeys("qkv", "the attention's projections were not recognised")
    if fused:
        _split_fused(model, config, layers, fused)


def _take_separate(
    site: LayerSites, named: dict[str, Call], attention: nn.Module, config: Any
) -> None:
    """Take three projections as they are; not a query's that has a gate or the like beside the heads."""
    size = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    heads = config.num_attention_heads
    for name, call in named.items():
        width = call.output.shape[1]
        if name == "q" and size and width != heads * size:
            site.reasons["q"] = (
                f"its projection gives {width} values where {heads} heads of {size} need fewer"
            )
        else:
            site.ports[name] = Port(call.path, "output", width, copy="output" in call.changed)


def _split_fused(model: Any, config: Any, layers: list[LayerSites], fused: dict[int, Call]) -> None:
    """Tell q, k and v apart in fused projections.

    At position 0 rotary embeddings turn by no angle, so the cached key and value of a lone token
    are columns of the fused output as it stands, in the model's own order of heads. The columns
    that are neither are the query's.
    """
    tokens = sample(model, count=_FUSED_TOKENS, seed=1).T
    outputs: dict[int, Tensor] = {}

    def handles() -> Iterator[Any]:
        for index, call in fused.items():

            def hook(module: nn.Module, args: tuple, output: Tensor, index: int = index) -> None:
                outputs[index] = output.detach().reshape(_FUSED_TOKENS, -1).clone()

            yield call.module.register_forward_hook(hook)

    with hooked(handles):
        cache = models.cache_in(run(model, tokens, use_cache=True))
    for index, call in fused.items():
        site, output = layers[index], outputs[index]
        try:
            layer = cache.layers[index]
            key, value = (
                t.transpose(1, 2).reshape(_FUSED_TOKENS, -1) for t in (layer.keys, layer.values)
            )
            columns = {"k": _matching_columns(output, key), "v": _matching_columns(output, value)}
        except (AttributeError, IndexError, TypeError, RuntimeError):
            columns = {"k": None, "v": None}
        if columns["k"] is None or columns["v"] is None:
            site.reasons |= dict.fromkeys("qkv", "the fused projection could not be told apart")
            continue
        taken = torch.zeros(output.shape[1], dtype=torch.bool)
        taken[columns["k"]] = taken[columns["v"]] = True
        columns["q"] = (~taken).nonzero().flatten()
        if len(columns["q"]) % config.num_attention_heads:
            site.reasons |= dict.fromkeys(
                "qkv", "the fused projection has columns that no head explains"
            )
            continue
        for name, which in columns.items():
            site.ports[name] = Port(
                call.path,
                "output",
                len(which),
                _as_slice(which, call.module),
                copy="output" in call.changed,
            )


def _matching_columns(output: Tensor, wanted: Tensor) -> Tensor | None:
    """For each column of `wanted`, the one column of `output` that is equal to it; None where that fails."""

    def key(column: Tensor) -> bytes:
        return column.float().cpu().contiguous().numpy().tobytes()

    # Adding zero turns −0.0, which rotary embeddings can produce, into 0.0.
    places: dict[bytes, list[int]] = {}
    for i in range(output.shape[1]):
        places.setdefault(key(output[:, i] + 0.0), []).append(i)
    found = [places.get(key(wanted[:, j] + 0.0), []) for j in range(wanted.shape[1])]
    if any(len(match) != 1 for match in found):
        return None
    # A model may cache a key or value once for each of the query heads that share it.
    return torch.tensor(list(dict.fromkeys(match[0] for match in found)))


def _as_slice(columns: Tensor, module: nn.Module) -> slice | Tensor:
    first, last = int(columns[0]), int(columns[-1])
    if torch.equal(columns, torch.arange(first, last + 1)):
        return slice(first, last + 1)
    return columns.to(module.weight.device)
