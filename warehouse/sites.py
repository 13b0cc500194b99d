"""Finds where each site lives in a model, by looking at numbers instead of names.

One probe pass over a few tokens records what every submodule takes and gives. The submodule outputs that add up,
bit for bit, to what a layer adds to the residual stream are its contributions; the linear map whose output is the
MLP's contribution is the down projection; and so on. What cannot be shown to be right is left out, with a reason.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from warehouse import generate, models
from warehouse.errors import AlabError
from warehouse.lake import SITES
from warehouse.probe import Call, record

#: Names that models give to separate projections of the attention.
_PROJECTIONS = {
    "q": ("q_proj", "query", "q_lin", "wq", "to_q"),
    "k": ("k_proj", "key", "k_lin", "wk", "to_k"),
    "v": ("v_proj", "value", "v_lin", "wv", "to_v"),
}
_PROBE_TOKENS = 8
#: Single tokens of the second probe, which tells the parts of a fused projection apart.
_FUSED_TOKENS = 24


@dataclass
class Port:
    """Where a tensor passes: the input or the output of a module.

    Attributes:
        module: path of the module in the model.
        side: `input` or `output`.
        width: width of the vectors.
        columns: which columns of a fused projection; None for all.
        scale: factor that the model applies before adding to the residual stream.
        copy: whether the model changes the tensor in place afterwards, so that it must be copied at once.
    """

    module: str
    side: str
    width: int
    columns: slice | Tensor | None = None
    scale: float = 1.0
    copy: bool = False

    def __str__(self) -> str:
        parts = [f"{self.module}.{self.side}"]
        if isinstance(self.columns, slice):
            parts.append(f"[{self.columns.start}:{self.columns.stop}]")
        elif self.columns is not None:
            parts.append("[interleaved]")
        if self.scale != 1.0:
            parts.append(f" × {self.scale:g}")
        return "".join(parts)


@dataclass
class LayerSites:
    """What was found in one layer.

    Attributes:
        module: path of the decoder layer.
        ports: where each site is.
        reasons: why a site is absent.
        attention: path of the module that returns attention weights; None where none does.
    """

    module: str
    ports: dict[str, Port] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    attention: str | None = None


@dataclass
class ModelSites:
    """What was found in a model.

    Attributes:
        layers: its decoder layers in order.
        embedding: path of the token embedding.
        hidden_size: width of the residual stream.
        trees: whether it was found to read several sequences in one pass.
        rewinds: whether its key-value cache was found to go back to what two sequences share.
    """

    layers: list[LayerSites]
    embedding: str
    hidden_size: int
    trees: bool
    rewinds: bool


def decoder_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Paths and modules of the decoder layers, in order.

    Raises:
        AlabError: the model has no list of as many modules as its config has layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    recorded = [getattr(m, "_can_record_outputs", None) for m in model.modules()]
    names = [record["hidden_states"] for record in recorded if isinstance(record, dict) and "hidden_states" in record]
    classes = tuple(c for c in (getattr(name, "target_class", name) for name in names) if isinstance(c, type))
    lists.sort(key=lambda item: (not (classes and isinstance(item[1][0], classes)), item[0].count(".")))
    if not lists:
        raise AlabError(f"{type(model).__name__} has no list of {count} decoder layers", "It cannot be captured.")
    path, layers = lists[0]
    return [(f"{path}.{i}", layer) for i, layer in enumerate(layers)]


def discover(model: Any, *, sharing: bool = True) -> ModelSites:
    """Find every site of a model that runs on its device.

    Costs one pass over a few tokens, and a second where projections are fused.

    Args:
        model: a causal language model of transformers.
        sharing: whether to find out what its sequences can share, for two to four passes more.

    Raises:
        AlabError: the model's layers cannot be found.
    """
    config = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", 0):
        raise AlabError(
            f"{type(model).__name__} has no attention", "alab captures transformers, and hybrids with some."
        )
    layers = decoder_layers(model)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (1, _PROBE_TOKENS), generator=generator)
    calls, ends = record(model, layers, tokens)
    found = []
    for (path, _), layer_calls, end in zip(layers, calls, ends, strict=True):
        site = LayerSites(path)
        if end.inputs is None or end.output is None:
            site.reasons = dict.fromkeys(SITES, "the layer's hidden state is not one vector per token")
        else:
            _find_residual(site, layer_calls, end, _multipliers(config))
            _find_attention(site, layer_calls, config)
            _find_mlp(site, layer_calls)
        found.append(site)
    _find_projections(model, config, layers, found, calls)
    for site in found:
        for name in SITES:
            if name not in site.ports:
                site.reasons.setdefault(name, "the model has no such tensor")
    names = {module: path for path, module in model.named_modules()}
    trees = rewinds = False
    if sharing:
        trees, rewinds = generate.sharing(model, layers[-1][1], tokens[0].tolist(), ends[-1].output)
    return ModelSites(found, names[model.get_input_embeddings()], config.hidden_size, trees, rewinds)


def _multipliers(config: Any) -> list[float]:
    """Factors that the config holds and a model may scale its contributions with; 1 first."""
    values = {v for v in config.to_dict().values() if isinstance(v, float) and 0 < v != 1}
    return [1.0, *sorted(values)]


def _sums_to(parts: list[Tensor], total: Tensor) -> bool:
    """Whether the parts add up to the total bit for bit, in some order of addition."""
    for order in itertools.permutations(parts):
        partial = order[0]
        for part in order[1:]:
            partial = partial + part
        if torch.equal(partial, total):
            return True
    return False


def _find_residual(site: LayerSites, calls: list[Call], end: Call, multipliers: list[float]) -> None:
    """Find the layer's input, output, and the two submodule outputs that make up the difference."""
    width = end.output.shape[1]
    site.ports["hidden_in"] = Port(site.module, "input", width, copy="input" in end.changed)
    site.ports["hidden_out"] = Port(site.module, "output", width, copy="output" in end.changed)
    candidates: list[Call] = []
    for call in calls:
        if call.output is not None and call.output.shape == end.output.shape and call.output.any():
            same = [c for c in candidates if torch.equal(c.output, call.output)]
            if not same:
                candidates.append(call)
    attention = _attention_path(calls)
    for scale in multipliers:
        for first, second in itertools.combinations(candidates, 2):
            parts = [end.inputs, first.output * scale, second.output * scale] if scale != 1 else [
                end.inputs, first.output, second.output]  # fmt: skip
            if _sums_to(parts, end.output):
                if attention and second.path.startswith(attention) and not first.path.startswith(attention):
                    first, second = second, first
                site.ports["attn_out"] = Port(
                    first.path, "output", width, scale=scale, copy="output" in first.changed
                )
                site.ports["mlp_down_out"] = Port(
                    second.path, "output", width, scale=scale, copy="output" in second.changed
                )
                return
        for only in candidates:
            if _sums_to([end.inputs, only.output * scale if scale != 1 else only.output], end.output):
                name, other = ("mlp_down_out", "attn_out") if "mlp" in only.path else ("attn_out", "mlp_down_out")
                site.ports[name] = Port(only.path, "output", width, scale=scale, copy="output" in only.changed)
                site.reasons[other] = "the layer adds one contribution only"
                return
    reason = "no two submodule outputs add up to what the layer adds to the residual stream"
    site.reasons |= {"attn_out": reason, "mlp_down_out": reason}


def _attention_path(calls: list[Call]) -> str | None:
    """Path of the attention: the module that returns its weights, else the outermost one called an attention."""
    for call in calls:
        if call.weights:
            return call.path
    named = [c.path for c in calls if "attention" in type(c.module).__name__.lower()]
    return min(named, key=len) if named else None


def _find_attention(site: LayerSites, calls: list[Call], config: Any) -> None:
    site.attention = next((call.path for call in calls if call.weights), None)
    if site.attention is None:
        site.reasons["attention"] = "no module of the layer returned attention weights"


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _find_mlp(site: LayerSites, calls: list[Call]) -> None:
    """Find the down projection behind the MLP's contribution, then what feeds it."""
    names = ("mlp_gate", "mlp_up", "mlp_down_in")
    port = site.ports.get("mlp_down_out")
    if port is None:
        site.reasons |= dict.fromkeys(names, "the MLP's contribution was not found")
        return
    contribution = next(c for c in calls if c.path == port.module)
    attention = _attention_path(calls) or "\0"
    linears = [c for c in calls if _is_linear(c.module) and c.inputs is not None and c.output is not None
               and not c.path.startswith(attention)]  # fmt: skip
    down, target, source = None, contribution.output, contribution
    for _ in range(3):  # the projection itself, or behind a norm, a dropout, or both
        down = next((c for c in linears if torch.equal(c.output, target)), None)
        if down is not None or any(True for _ in source.module.children()) or source.inputs is None:
            break
        target = source.inputs
        source = next((c for c in reversed(calls) if c.output is not None and torch.equal(c.output, target)), source)
    if down is None:
        site.reasons |= dict.fromkeys(names, "the MLP has no single down projection (a mixture of experts, for one)")
        return
    inner = down.inputs.shape[1]
    site.ports["mlp_down_in"] = Port(down.path, "input", inner, copy="input" in down.changed)
    home = down.path.rpartition(".")[0]
    feeding = [
        c for c in linears if c is not down and c.path.startswith(home + ".") and calls.index(c) < calls.index(down)
    ]
    activated = [c.inputs for c in calls if c.inputs is not None and not _is_linear(c.module)
                 and c.path.startswith(home + ".") and not any(True for _ in c.module.children())]  # fmt: skip
    single = [c for c in feeding if c.output.shape[1] == inner]
    fused = [c for c in feeding if c.output.shape[1] == 2 * inner]
    halves = [(c, part) for c in fused for part in (slice(0, inner), slice(inner, 2 * inner))]
    parts = halves if len(fused) == 1 and not single else [(c, None) for c in single]
    if len(parts) == 1:
        call, _ = parts[0]
        site.ports["mlp_up"] = Port(call.path, "output", inner, copy="output" in call.changed)
        site.reasons["mlp_gate"] = "the MLP has no gate"
        return
    if len(parts) == 2:
        gates = [
            part for part in parts
            if any(torch.equal(_columns(part[0].output, part[1]), value) for value in activated)
        ] or [part for part in parts if "gate" in part[0].path.rpartition(".")[2] and part[1] is None]  # fmt: skip
        if len(gates) == 1:
            (gate, gate_columns), (up, up_columns) = gates[0], parts[1 - parts.index(gates[0])]
            site.ports["mlp_gate"] = Port(gate.path, "output", inner, gate_columns, copy="output" in gate.changed)
            site.ports["mlp_up"] = Port(up.path, "output", inner, up_columns, copy="output" in up.changed)
            return
    site.reasons |= dict.fromkeys(("mlp_gate", "mlp_up"), "the MLP's input projections could not be told apart")


def _columns(tensor: Tensor, columns: slice | Tensor | None) -> Tensor:
    return tensor if columns is None else tensor[..., columns]


def _find_projections(
    model: Any, config: Any, layers: list, found: list[LayerSites], calls: list[list[Call]]
) -> None:
    """Find q, k and v: separate ones by name and width, fused ones by comparing with the key-value cache."""
    fused: dict[int, Call] = {}
    heads = config.num_attention_heads
    for index, (site, layer_calls) in enumerate(zip(found, calls, strict=True)):
        attention = _attention_path(layer_calls)
        linears = [c for c in layer_calls if attention and c.path.startswith(attention + ".") and _is_linear(c.module)
                   and c.output is not None]  # fmt: skip
        named = {s: [c for c in linears if c.path.rpartition(".")[2] in names] for s, names in _PROJECTIONS.items()}
        if all(len(c) == 1 for c in named.values()):
            size = getattr(linears and layers[index][1].get_submodule(attention.removeprefix(site.module + ".")),
                           "head_dim", None) or getattr(config, "head_dim", None)  # fmt: skip
            width = {s: c[0].output.shape[1] for s, c in named.items()}
            if size and width["q"] != heads * size:
                site.reasons["q"] = (
                    f"its projection gives {width['q']} values where {heads} heads of {size} need fewer"
                )
                named["q"] = []
            for name, matches in named.items():
                for call in matches:
                    site.ports[name] = Port(call.path, "output", width[name], copy="output" in call.changed)
            continue
        candidates = [c for c in linears if c.inputs is not None and c.output.shape[1] > c.inputs.shape[1]]
        if len(candidates) == 1 and not any(named.values()):
            fused[index] = candidates[0]
        else:
            site.reasons |= dict.fromkeys("qkv", "the attention's projections were not recognised")
    if fused:
        _split_fused(model, config, found, fused)


def _split_fused(model: Any, config: Any, found: list[LayerSites], fused: dict[int, Call]) -> None:
    """Tell q, k and v apart in fused projections.

    At position 0 rotary embeddings turn by no angle, so the cached key and value of a lone token are columns of
    the fused output as it stands, in the model's own order of heads. The columns that are neither are the query's.
    """
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, config.vocab_size, (_FUSED_TOKENS, 1), generator=generator)
    outputs: dict[int, Tensor] = {}
    handles = []
    try:
        for index, call in fused.items():

            def hook(module: nn.Module, args: tuple, output: Tensor, index: int = index) -> None:
                outputs[index] = output.detach().reshape(_FUSED_TOKENS, -1).clone()

            handles.append(call.module.register_forward_hook(hook))
        with torch.no_grad():
            cache = models.cache_in(model(tokens.to(model.device), use_cache=True))
    finally:
        for handle in handles:
            handle.remove()
    for index, call in fused.items():
        site, output = found[index], outputs[index]
        try:
            layer = cache.layers[index]
            key, value = (t.transpose(1, 2).reshape(_FUSED_TOKENS, -1) for t in (layer.keys, layer.values))
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
            site.reasons |= dict.fromkeys("qkv", "the fused projection has columns that no head explains")
            continue
        for name, which in columns.items():
            site.ports[name] = Port(
                call.path, "output", len(which), _as_slice(which, call.module), copy="output" in call.changed
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
