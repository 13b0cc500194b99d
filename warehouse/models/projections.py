"""Queries, keys and values: projections by name and width, fused ones by what the cache holds."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.models import limits
from warehouse.models.ports import LayerSites
from warehouse.models.probe import Call, forward, outputs_of, port_of, sample
from warehouse.models.sublayers import linear_calls

#: Names that models give to separate projections of the attention.
_PROJECTIONS = {
    "q": ("q_proj", "query", "q_lin", "wq", "to_q"),
    "k": ("k_proj", "key", "k_lin", "wk", "to_k"),
    "v": ("v_proj", "value", "v_lin", "wv", "to_v"),
}
#: Single tokens of the second probe, which tells the parts of a fused projection apart.
_FUSED_TOKENS = 24


def find_projections(
    model: Any, config: Any, layers: list[LayerSites], calls: list[list[Call]]
) -> None:
    """Find q, k and v in each layer, given the calls of its submodules.

    Three projections with known names are taken as they are; a single one that is wider than what
    it reads is fused, and taken apart by another pass.
    """
    fused: dict[int, Call] = {}
    for index, (site, inside) in enumerate(zip(layers, calls, strict=True)):
        called_so = [c.path for c in inside if "attention" in type(c.module).__name__.lower()]
        path = site.attention or min(called_so, key=len, default=None)  # else the outermost
        linears = [c for c in linear_calls(inside) if path and c.path.startswith(path + ".")]
        named = {
            name: [c for c in linears if c.path.rpartition(".")[2] in names]
            for name, names in _PROJECTIONS.items()
        }
        wider = [c for c in linears if c.output.shape[1] > c.inputs.shape[1]]
        if all(len(matches) == 1 for matches in named.values()):
            attention = next(c.module for c in inside if c.path == path)
            separate = {name: call for name, (call,) in named.items()}
            _take_separate(site, separate, attention, config)
        elif len(wider) == 1 and not any(named.values()):
            fused[index] = wider[0]
        else:
            site.lacks("qkv", "the attention's projections were not recognised")
    if fused:
        _split_fused(model, config, layers, fused)


def _take_separate(
    site: LayerSites, calls: dict[str, Call], attention: nn.Module, config: Any
) -> None:
    """Take three projections as they are; a query's only without a gate beside its heads."""
    size = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    heads = config.num_attention_heads
    for name, call in calls.items():
        width = call.output.shape[1]
        if name == "q" and size and width != heads * size:
            reason = f"its projection gives {width} values where {heads} heads of {size} need fewer"
            site.reasons["q"] = reason
        else:
            site.ports[name] = port_of(call)


def _split_fused(model: Any, config: Any, layers: list[LayerSites], fused: dict[int, Call]) -> None:
    """Tell q, k and v apart in fused projections, by a pass over single tokens.

    At position 0 rotary embeddings turn by no angle, so the cached key and value of a lone token
    are columns of the fused output as it stands, in the model's own order of heads. The columns
    that are neither are the query's.
    """
    with outputs_of(call.module for call in fused.values()) as outputs:
        tokens = sample(model, count=_FUSED_TOKENS, seed=1).T
        cache = limits.cache_in(forward(model, tokens, use_cache=True))
    for index, call in fused.items():
        site, output = layers[index], outputs[call.module][-1].reshape(_FUSED_TOKENS, -1)
        key, value = (_matching_columns(output, rows) for rows in _cached(cache, index))
        if key is None or value is None:
            site.lacks("qkv", "the fused projection could not be told apart")
            continue
        rest = torch.ones(output.shape[1], dtype=torch.bool)
        rest[key] = rest[value] = False
        query = rest.nonzero().flatten()
        if len(query) % config.num_attention_heads:
            site.lacks("qkv", "the fused projection has columns that no head explains")
            continue
        for name, columns in {"k": key, "v": value, "q": query}.items():
            site.ports[name] = port_of(call, _as_slice(columns, output.device))


def _cached(cache: Any, index: int) -> list[Tensor | None]:
    """The keys and the values of a layer, each (tokens, width); None where the cache has none."""
    with suppress(AttributeError, IndexError, TypeError, RuntimeError):
        tensors = cache.layers[index].keys, cache.layers[index].values
        return [t.transpose(1, 2).reshape(_FUSED_TOKENS, -1) for t in tensors]
    return [None, None]


def _matching_columns(output: Tensor, rows: Tensor | None) -> Tensor | None:
    """For each column of `rows`, the one column of `output` that is equal to it; None if not so."""
    if rows is None:
        return None
    places: dict[bytes, list[int]] = {}
    for place, column in enumerate(_columns(output)):
        places.setdefault(column, []).append(place)
    matches = [places.get(column, []) for column in _columns(rows)]
    if any(len(match) != 1 for match in matches):
        return None
    # A model may cache a key or value once for each of the query heads that share it.
    return torch.tensor(list(dict.fromkeys(match[0] for match in matches)))


def _columns(rows: Tensor) -> list[bytes]:
    """Each column as bytes; adding zero turns −0.0, which rotary embeddings can give, into 0.0."""
    return [column.tobytes() for column in (rows + 0.0).float().cpu().T.contiguous().numpy()]


def _as_slice(columns: Tensor, device: torch.device) -> slice | Tensor:
    first, last = int(columns[0]), int(columns[-1])
    if torch.equal(columns, torch.arange(first, last + 1)):
        return slice(first, last + 1)
    return columns.to(device)
