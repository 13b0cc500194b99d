"""What a layer adds to the residual stream, by numbers: which outputs add up to it, and which of them mix positions.

A contribution that changes for a token when only other tokens change comes from attention, or from
whatever mixes positions in its place: it is `attn_out`. One that does not is `mlp_down_out`.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.models.ports import LayerSites, Port
from warehouse.models.probe import (
    Call,
    Trace,
    alike,
    as_rows,
    first,
    hooked,
    run,
    with_first,
    with_first_input,
)
from warehouse.models.stack import Stack

#: Contributions that a layer may have; with more, looking for them would take long.
_MOST = 4


@dataclass
class Sum:
    """Module outputs that, times a factor, make up what a layer adds; in the order in which they are computed."""

    parts: list[Call]
    scale: float


def find_contributions(model: Any, seen: Trace, stack: Stack, layers: list[LayerSites]) -> None:
    """Find each layer's input, output, and what it adds; one pass over a few tokens tells what mixes positions."""
    scales = _multipliers(model.config)
    sums: list[Sum | None] = []
    for site, end in zip(layers, stack.layers, strict=True):
        width = end.output.shape[1]
        site.ports["hidden_in"] = Port(site.module, "input", width, copy="input" in end.changed)
        site.ports["hidden_out"] = Port(site.module, "output", width, copy="output" in end.changed)
        sums.append(_sum_of([call for call in seen.calls if call.inside(end)], end, scales))
    mixing, compared = _mixing(model, seen, stack, sums)
    for index, (site, total) in enumerate(zip(layers, sums, strict=True)):
        if total is None:
            reason = "no submodule outputs add up to what the layer adds to the residual stream"
            site.reasons |= {"attn_out": reason, "mlp_down_out": reason}
            continue
        if not all((index, part.path) in compared for part in total.parts):
            reason = "whether what the layer adds mixes positions could not be compared"
            site.reasons |= {"attn_out": reason, "mlp_down_out": reason}
            continue
        mixed = [part for part in total.parts if (index, part.path) in mixing]
        alone = [part for part in total.parts if (index, part.path) not in mixing]
        for name, parts, which in (
            ("attn_out", mixed, "mixes positions"),
            ("mlp_down_out", alone, "works on each position alone"),
        ):
            if parts:
                site.ports[name] = _port(parts, total.scale)
            else:
                site.reasons[name] = f"nothing that the layer adds {which}"


def _port(parts: list[Call], scale: float) -> Port:
    changed = any("output" in part.changed for part in parts)
    more = tuple(part.path for part in parts[1:])
    return Port(
        parts[0].path, "output", parts[0].output.shape[1], scale=scale, copy=changed, more=more
    )


def _multipliers(config: Any) -> list[float]:
    """Factors that the config holds and a model may scale its contributions with; 1 first."""
    text = config.get_text_config()
    values = {
        v
        for v in {**config.to_dict(), **text.to_dict()}.values()
        if isinstance(v, float) and 0 < v != 1
    }
    return [1.0, *sorted(values)]


def _sum_of(calls: list[Call], end: Call, scales: list[float]) -> Sum | None:
    """The outputs that add up to what a layer adds: bit for bit if some do, else to rounding; None where none do.

    `calls` are those inside the layer. More than two are looked for among those that are in no
    other: the parts of a block would be found beside the block.
    """
    candidates = _distinct(
        [c for c in calls if c.output is not None and c.output.shape == end.own.shape]
    )
    outer = [c for c in candidates if not any(c.inside(other) for other in candidates)]
    for exact in (True, False):
        for scale in scales:
            for count, among in (
                (2, candidates),
                (1, candidates),
                *((n, outer) for n in range(3, _MOST + 1)),
            ):
                for parts in itertools.combinations(among, count):
                    outputs = [
                        part.output * scale if scale != 1.0 else part.output for part in parts
                    ]
                    if _sums_to([end.inputs, *outputs], end.own, exact):
                        return Sum(list(parts), scale)
    return None


def _distinct(calls: list[Call]) -> list[Call]:
    """Of calls with equal outputs the last, which is the outermost: a change of any of them has gone through it.

    A module that is called twice is left out, since its output would not be one tensor; so are
    outputs of zeros.
    """
    once = [
        call
        for call in calls
        if sum(other.module is call.module for other in calls) == 1 and call.output.any()
    ]
    distinct: list[Call] = []
    for call in reversed(once):
        if not any(torch.equal(call.output, other.output) for other in distinct):
            distinct.append(call)
    return distinct[::-1]


def _sums_to(parts: list[Tensor], total: Tensor, exact: bool) -> bool:
    """Whether parts add up to a total: bit for bit in some order of addition, or to rounding in float32."""
    if not exact:
        parts = [part.float() for part in parts]
        size = torch.stack([*parts, total.float()]).abs().amax(0).amax(-1, keepdim=True)
        return bool(
            ((total.float() - sum(parts)).abs() <= 4 * torch.finfo(total.dtype).eps * size).all()
        )
    for order in itertools.permutations(parts):
        partial = order[0]
        for part in order[1:]:
            partial = partial + part
        if torch.equal(partial, total):
            return True
    return False


def _mixing(
    model: Any, seen: Trace, stack: Stack, sums: list[Sum | None]
) -> tuple[set[tuple[int, str]], set[tuple[int, str]]]:
    """Which contributions mix positions, and which were compared at all, as (layer, path), by one pass.

    Each layer reads what it read before, but for the tokens before the last one, whose vectors are
    turned round. A contribution that changes for the last token mixes positions. It is put back as
    it was, so that the next one in the layer has the same to work on for that token.
    """
    count = seen.tokens.numel()
    mixing: set[tuple[int, str]] = set()
    compared: set[tuple[int, str]] = set()
    inside: list[int] = []  # the layer that is running

    def enter(index: int, call: Call) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            inside[:] = [index]
            return with_first_input(
                args, kwargs, torch.cat([call.inputs[:-1].flip(-1), call.inputs[-1:]])
            )

        return call.module.register_forward_pre_hook(hook, with_kwargs=True)

    def compare(index: int, part: Call) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            if inside != [index]:  # a module that several layers share
                return None
            rows = as_rows(first(output), count).to(part.output.device)
            compared.add((index, part.path))
            if not alike(rows[-1:], part.output[-1:]).all():
                mixing.add((index, part.path))
            return with_first(output, torch.cat([rows[:-1], part.output[-1:]]))

        return part.module.register_forward_hook(hook)

    def handles() -> Iterator[Any]:
        for index, (call, total) in enumerate(zip(stack.layers, sums, strict=True)):
            yield enter(index, call)
            for part in total.parts if total else ():
                yield compare(index, part)

    with hooked(handles):
        run(model, seen.tokens, use_cache=False)
    return mixing, compared


def find_mlp(site: LayerSites, calls: list[Call]) -> None:
    """Find the down projection behind the MLP's contribution, then what feeds it; `calls` are those of the layer."""
    names = ("mlp_gate", "mlp_up", "mlp_down_in")
    port = site.ports.get("mlp_down_out")
    if port is None:
        site.reasons |= dict.fromkeys(names, "the MLP's contribution was not found")
        return
    linears = linear_calls(calls)
    down = (
        None
        if port.more
        else _down_projection(calls, linears, next(c for c in calls if c.path == port.module))
    )
    if down is None:
        site.reasons |= dict.fromkeys(
            names, "the MLP has no single down projection (a mixture of experts, for one)"
        )
        return
    inner, home = down.inputs.shape[1], down.path.rpartition(".")[0]
    site.ports["mlp_down_in"] = Port(down.path, "input", inner, copy="input" in down.changed)
    feeding = [c for c in linears if c.path.startswith(home + ".") and c.ended < down.began]
    inputs = _input_projections(feeding, inner)
    if len(inputs) == 1 and inputs[0][1] is None:
        site.ports["mlp_up"] = _projection(*inputs[0], inner)
        site.reasons["mlp_gate"] = "the MLP has no gate"
        return
    if len(inputs) == 2 and (gate := _gate(inputs, calls, home)) is not None:
        site.ports["mlp_gate"] = _projection(*inputs[gate], inner)
        site.ports["mlp_up"] = _projection(*inputs[1 - gate], inner)
        return
    site.reasons |= dict.fromkeys(
        ("mlp_gate", "mlp_up"), "the MLP's input projections could not be told apart"
    )


#: A linear call, and which of its columns; None for all.
Columns = tuple[Call, slice | None]


def _down_projection(calls: list[Call], linears: list[Call], contribution: Call) -> Call | None:
    """The linear map that gives the contribution: itself, or behind a norm, a dropout, or both."""
    target, source = contribution.own, contribution
    for _ in range(3):
        down = next((c for c in reversed(linears) if torch.equal(c.output, target)), None)
        if down is not None or any(True for _ in source.module.children()) or source.inputs is None:
            return down
        target = source.given
        source = next(
            (c for c in reversed(calls) if c.output is not None and torch.equal(c.output, target)),
            source,
        )
        target = source.own if torch.equal(source.output, target) else target
    return None


def _input_projections(feeding: list[Call], inner: int) -> list[Columns]:
    """The projections as wide as the down projection's input, or the two halves of one that is twice as wide."""
    single: list[Columns] = [(c, None) for c in feeding if c.output.shape[1] == inner]
    fused = [c for c in feeding if c.output.shape[1] == 2 * inner]
    if len(fused) == 1 and not single:
        return [(fused[0], slice(0, inner)), (fused[0], slice(inner, 2 * inner))]
    return single


def _gate(inputs: list[Columns], calls: list[Call], home: str) -> int | None:
    """Which of two input projections the activation is applied to; None where that cannot be told."""
    leaves = [
        c
        for c in calls
        if c.inputs is not None
        and not is_linear(c.module)
        and c.path.startswith(home + ".")
        and not any(True for _ in c.module.children())
    ]
    gates = [
        i
        for i, (call, columns) in enumerate(inputs)
        if any(
            torch.equal(call.output if columns is None else call.output[:, columns], c.inputs)
            for c in leaves
        )
    ] or [
        i
        for i, (call, columns) in enumerate(inputs)
        if "gate" in call.path.rpartition(".")[2] and columns is None
    ]
    return gates[0] if len(gates) == 1 else None


def _projection(call: Call, columns: slice | None, width: int) -> Port:
    return Port(call.path, "output", width, columns, copy="output" in call.changed)


def is_linear(module: nn.Module) -> bool:
    """Whether a module has a matrix for its weight, as a projection has, wrapped by an adapter or not."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def linear_calls(calls: list[Call]) -> list[Call]:
    """The calls of projections, but for those inside another one: an adapter's own, and what it wraps."""
    linears = [
        c for c in calls if is_linear(c.module) and c.inputs is not None and c.output is not None
    ]
    return [c for c in linears if not any(c.inside(other) for other in linears)]
