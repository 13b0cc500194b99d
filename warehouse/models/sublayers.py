"""What a layer adds to the residual stream: which outputs add up to it, and which mix positions.

A contribution that changes for a token when only other tokens change comes from attention, or from
whatever mixes positions in its place: it is `attn_out`. One that does not is `mlp_down_out`.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.models import probe
from warehouse.models.ports import LayerSites, Port
from warehouse.models.probe import Call, Trace, identical, port_of
from warehouse.models.stack import Stack

#: Contributions that a layer may have; with more, looking for them would take long.
_MOST = 4
#: What each site that a layer adds does, as reasons say it.
_DEEDS = {"attn_out": "mixes positions", "mlp_down_out": "works on each position alone"}
_INSIDE_MLP = ("mlp_gate", "mlp_up", "mlp_down_in")

#: A contribution of a layer, as (layer, path of its module).
Contribution = tuple[int, str]


@dataclass
class Sum:
    """Module outputs, in order, that times a factor make up what a layer adds."""

    parts: list[Call]
    scale: float

    def port(self, parts: list[Call]) -> Port:
        """Where the sum of some of its parts passes."""
        return Port(
            parts[0].path,
            "output",
            parts[0].output.shape[1],
            scale=self.scale,
            copy=any("output" in part.changed for part in parts),
            more=tuple(part.path for part in parts[1:]),
        )


def find_contributions(model: Any, trace: Trace, stack: Stack, layers: list[LayerSites]) -> None:
    """Find each layer's input, output, and what it adds, by another pass.

    The outputs that add up to what a layer adds are looked for in the trace; then all layers run
    once more on vectors of which only the last token's are the same, which tells the contributions
    apart.
    """
    scales = _multipliers(model.config)
    sums = [_sum_of(trace, layer, scales) for layer in stack.layers]
    mixing, compared = _mixing(model, trace, stack, sums)
    for index, (site, layer, total) in enumerate(zip(layers, stack.layers, sums, strict=True)):
        for name, side in (("hidden_in", "input"), ("hidden_out", "output")):
            site.ports[name] = port_of(layer, side=side)
        if total is None:
            reason = "no submodule outputs add up to what the layer adds to the residual stream"
            site.lacks(_DEEDS, reason)
        elif not all((index, part.path) in compared for part in total.parts):
            site.lacks(_DEEDS, "whether what the layer adds mixes positions could not be compared")
        else:
            for name, deed in _DEEDS.items():
                mixes = name == "attn_out"
                if parts := [p for p in total.parts if ((index, p.path) in mixing) == mixes]:
                    site.ports[name] = total.port(parts)
                else:
                    site.reasons[name] = f"nothing that the layer adds {deed}"


def _multipliers(config: Any) -> list[float]:
    """Factors that the config holds and a model may scale its contributions with; 1 first."""
    values = {**config.to_dict(), **config.get_text_config().to_dict()}.values()
    return [1.0, *sorted({v for v in values if isinstance(v, float) and 0 < v != 1})]


def _sum_of(trace: Trace, layer: Call, scales: list[float]) -> Sum | None:
    """The outputs that add up to what a layer adds; None where none do.

    Bit for bit if some do, else to rounding; two before one, since a module may give the sum of
    both. More than two are looked for among those that are in no other: the parts of a block would
    be found beside the block.
    """
    inside = (call for call in trace.calls if call.inside(layer) and call.gives)
    candidates = _distinct([c for c in inside if c.output.shape == layer.bare_output.shape])
    outer = [c for c in candidates if not any(c.inside(other) for other in candidates)]
    groups = [
        *itertools.combinations(candidates, 2),
        *itertools.combinations(candidates, 1),
        *(parts for n in range(3, _MOST + 1) for parts in itertools.combinations(outer, n)),
    ]
    for exact, scale, parts in itertools.product((True, False), scales, groups):
        outputs = [part.output * scale if scale != 1.0 else part.output for part in parts]
        if _adds_up([layer.inputs, *outputs], layer.bare_output, exact):
            return Sum(list(parts), scale)
    return None


def _distinct(calls: list[Call]) -> list[Call]:
    """Of calls with equal outputs the last: a change of any of them has gone through it.

    It is the outermost. A module that is called twice is left out, since its output would not be
    one tensor; so are outputs of zeros.
    """
    distinct: list[Call] = []
    for call in reversed(calls):
        once = sum(other.module is call.module for other in calls) == 1
        known = any(torch.equal(call.output, other.output) for other in distinct)
        if once and not known and call.output.any():
            distinct.append(call)
    return distinct[::-1]


def _adds_up(parts: list[Tensor], total: Tensor, exact: bool) -> bool:
    """Whether parts add up to a total: bit for bit in some order, or to rounding in float32."""
    if exact:
        return any(torch.equal(_added(order), total) for order in itertools.permutations(parts))
    parts, sum_ = [part.float() for part in parts], total.float()
    size = torch.stack([*parts, sum_]).abs().amax(0).amax(-1, keepdim=True)
    apart = (sum_ - _added(parts)).abs()
    return bool((apart <= 4 * torch.finfo(total.dtype).eps * size).all())


def _added(parts: Sequence[Tensor]) -> Tensor:
    """Parts added up from left to right, in their own precision."""
    return sum(parts[1:], start=parts[0])


def _mixing(
    model: Any, trace: Trace, stack: Stack, sums: list[Sum | None]
) -> tuple[set[Contribution], set[Contribution]]:
    """Which contributions mix positions, and which were compared at all, by one pass.

    Each layer reads what it read before, but for the tokens before the last one, whose vectors are
    turned round. A contribution that changes for the last token mixes positions. It is put back as
    it was, so that the next one in the layer has the same to work on for that token.
    """
    mixing: set[Contribution] = set()
    compared: set[Contribution] = set()
    running: list[int] = []  # the layer

    def enter(index: int, call: Call) -> Any:
        turned = torch.cat([call.inputs[:-1].flip(-1), call.inputs[-1:]])

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            running[:] = [index]
            return probe.with_first_input(args, kwargs, turned)

        return call.module.register_forward_pre_hook(hook, with_kwargs=True)

    def compare(index: int, part: Call) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            if running != [index]:  # a module that several layers share
                return None
            rows = probe.as_rows(probe.first(output), trace.tokens.numel()).to(part.output.device)
            compared.add((index, part.path))
            if not probe.alike(rows[-1:], part.output[-1:]).all():
                mixing.add((index, part.path))
            return probe.with_first(output, torch.cat([rows[:-1], part.output[-1:]]))

        return part.module.register_forward_hook(hook)

    def handles() -> Iterator[Any]:
        for index, (call, total) in enumerate(zip(stack.layers, sums, strict=True)):
            yield enter(index, call)
            for part in total.parts if total else ():
                yield compare(index, part)

    with probe.hooked(handles()):
        probe.forward(model, trace.tokens, use_cache=False)
    return mixing, compared


#: A linear call, and which of its columns; None for all.
Columns = tuple[Call, slice | None]


def find_mlp(site: LayerSites, calls: list[Call]) -> None:
    """Find what the MLP's contribution is made of, given the calls of the layer.

    The linear map behind it is the down projection; the linear maps beside that are as wide as its
    input (or one that is twice as wide) are the up projection and the gate, and the gate is the one
    that the activation reads.
    """
    port = site.ports.get("mlp_down_out")
    if port is None:
        site.lacks(_INSIDE_MLP, "the MLP's contribution was not found")
        return
    linears = linear_calls(calls)
    whole = next(call for call in calls if call.path == port.module)
    down = None if port.more else _down_projection(calls, linears, whole)
    if down is None:
        reason = "the MLP has no single down projection (a mixture of experts, for one)"
        site.lacks(_INSIDE_MLP, reason)
        return
    site.ports["mlp_down_in"] = port_of(down, side="input")
    home = down.path.rpartition(".")[0] + "."
    feeding = [c for c in linears if c.path.startswith(home) and c.ended < down.began]
    inputs = _input_projections(feeding, down.inputs.shape[1])
    gate = _gate(inputs, [c for c in calls if c.path.startswith(home)])
    if [columns for _, columns in inputs] == [None]:
        site.ports["mlp_up"] = port_of(*inputs[0])
        site.reasons["mlp_gate"] = "the MLP has no gate"
    elif len(inputs) == 2 and gate is not None:
        site.ports["mlp_gate"] = port_of(*inputs[gate])
        site.ports["mlp_up"] = port_of(*inputs[1 - gate])
    else:
        reason = "the MLP's input projections could not be told apart"
        site.lacks(("mlp_gate", "mlp_up"), reason)


def _down_projection(calls: list[Call], linears: list[Call], contribution: Call) -> Call | None:
    """The linear map that gives the contribution: itself, or behind a norm, a dropout, or both.

    Going back from the contribution, an output that no linear map gave is taken for that of a
    single module, whose input is looked at next.
    """
    output, source = contribution.bare_output, contribution
    for _ in range(3):
        down = _giver(linears, output)
        if down is not None or not source.is_leaf or not source.reads:
            return down
        output = source.bare_input
        source = _giver(calls, output) or source
        output = source.bare_output if identical(source.output, output) else output
    return None


def _giver(calls: list[Call], output: Tensor) -> Call | None:
    """The last of some calls that gave an output."""
    return next((call for call in reversed(calls) if identical(call.output, output)), None)


def _input_projections(feeding: list[Call], inner: int) -> list[Columns]:
    """The projections as wide as the down projection's input, or the halves of a wider one."""
    single: list[Columns] = [(c, None) for c in feeding if c.output.shape[1] == inner]
    fused = [c for c in feeding if c.output.shape[1] == 2 * inner]
    if len(fused) == 1 and not single:
        return [(fused[0], slice(0, inner)), (fused[0], slice(inner, 2 * inner))]
    return single


def _gate(inputs: list[Columns], calls: list[Call]) -> int | None:
    """Which of two input projections is the gate; None where that cannot be told.

    It is the one that a single module, the activation, reads as it is; where none does, the one
    that is called so.
    """
    leaves = [c for c in calls if c.reads and c.is_leaf and not is_linear(c.module)]
    read = [
        any(identical(call.output[:, columns or slice(None)], leaf.inputs) for leaf in leaves)
        for call, columns in inputs
    ]
    named = ["gate" in c.path.rpartition(".")[2] and columns is None for c, columns in inputs]
    signs = read if any(read) else named
    return signs.index(True) if sum(signs) == 1 else None


def is_linear(module: nn.Module) -> bool:
    """Whether a module has a matrix for its weight, as a projection has, also within an adapter."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def linear_calls(calls: list[Call]) -> list[Call]:
    """The calls of projections, but for those inside another, such as an adapter's own."""
    linears = [call for call in calls if is_linear(call.module) and call.reads and call.gives]
    return [c for c in linears if not any(c.inside(other) for other in linears)]
