"""One forward pass over a few tokens that notes what every module takes and gives."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count as count_from
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError, first_line
from warehouse.models.offload import device_of
from warehouse.models.ports import Port
from warehouse.models.weights import embedding_rows

#: Tokens that a probe reads.
TOKENS = 8
#: Stands for a tensor that is not one vector per token; `identical` to nothing.
NO_ROWS = torch.empty(0)


@dataclass
class Call:
    """One call of a module during the probe; tensors are (tokens, width) copies, or `NO_ROWS`.

    Attributes:
        path: path of the module in the model.
        module: the module.
        began, ended: when, counted in calls that began or ended; a call inside another lies between
            its two.
        inputs: its first input, after the hooks on it.
        output: its first output, after the hooks on it.
        bare_input, bare_output: the same before the hooks of others on it.
        weights: whether it returns attention weights.
        changed: sides (`input`, `output`) whose tensor the model changed in place later.
    """

    path: str
    module: nn.Module
    began: int
    ended: int = -1
    inputs: Tensor = NO_ROWS
    output: Tensor = NO_ROWS
    bare_input: Tensor = NO_ROWS
    bare_output: Tensor = NO_ROWS
    weights: bool = False
    changed: set[str] = field(default_factory=set)

    @property
    def reads(self) -> bool:
        """Whether its first input is one vector per token."""
        return self.inputs is not NO_ROWS

    @property
    def gives(self) -> bool:
        """Whether its first output is one vector per token."""
        return self.output is not NO_ROWS

    @property
    def is_leaf(self) -> bool:
        """Whether its module has none inside."""
        return next(self.module.children(), None) is None

    def inside(self, other: "Call") -> bool:
        """Whether it was made during another call."""
        return other.began < self.began and self.ended < other.ended


@dataclass
class Trace:
    """What a probe saw.

    Attributes:
        tokens: (1, tokens) ids that were read.
        calls: calls in the order in which they ended.
        output: what the model returned.
    """

    tokens: Tensor
    calls: list[Call]
    output: Any

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of one module."""
        return [call for call in self.calls if call.module is module]


def port_of(call: Call, columns: slice | Tensor | None = None, *, side: str = "output") -> Port:
    """Where what a call takes or gives passes, the whole of it or some columns."""
    width = (call.inputs if side == "input" else call.output).shape[1]
    if isinstance(columns, slice):
        width = columns.stop - columns.start
    elif columns is not None:
        width = len(columns)
    return Port(call.path, side, width, columns, copy=side in call.changed)


def unwrapped(model: Any) -> Any:
    """The model inside a PEFT wrapper, whose `generate` calls it by itself; else the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def sample(model: Any, *, count: int = TOKENS, seed: int = 0) -> Tensor:
    """(1, count) ids to probe with; none that stands for an image or ends a sequence."""
    config = model.config.get_text_config()
    values = {**model.config.to_dict(), **config.to_dict()}
    ids = (v for name, v in values.items() if name.endswith(("token_id", "token_index")))
    special = {v for v in ids if isinstance(v, int)}
    size = min(config.vocab_size, embedding_rows(model) or config.vocab_size)
    plain = torch.tensor([token for token in range(size) if token not in special] or [0])
    draw = torch.Generator().manual_seed(seed)
    return plain[torch.randint(0, len(plain), (1, count), generator=draw)]


def trace(model: Any, tokens: Tensor) -> Trace:
    """Run the model once on (1, tokens) ids, as `forward` does, and note every call of a module."""
    count = tokens.numel()
    heads = getattr(model.config.get_text_config(), "num_attention_heads", 0)
    notes = _Notes(count, heads, device_of(model))
    modules = ((path, module) for path, module in model.named_modules() if path)
    with hooked(handle for place in modules for handle in notes.watch(*place)):
        output = forward(model, tokens, use_cache=False)
    for call, side, raw, rows in notes.raw:  # tensors of inference mode have no version
        if not torch.equal(as_rows(raw, count).to(rows.device), rows):
            call.changed.add(side)
    return Trace(tokens, notes.calls, output)


class _Notes:
    """Takes down calls as they happen.

    Args:
        count: tokens that are read.
        heads: attention heads of the model.
        device: where all tensors are compared, also of a model that is spread over several.
    """

    def __init__(self, count: int, heads: int, device: torch.device):
        self._count, self._heads, self._device = count, heads, device
        self.calls: list[Call] = []
        self.raw: list[tuple[Call, str, Tensor, Tensor]] = []
        self._open: list[Call] = []
        self._clock = count_from(1)

    def watch(self, path: str, module: nn.Module) -> list[Any]:
        """Put hooks on a module, the last of all and, for what others change, the first too.

        Returns:
            Their handles.
        """

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            value = self._copy(first_input(args, kwargs))
            self._open.append(Call(path, module, next(self._clock), bare_input=value))

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            call = self._open[-1]
            call.inputs = self._rows(call, "input", first_input(args, kwargs))

        def own(module: nn.Module, args: tuple, output: Any) -> None:
            self._open[-1].bare_output = self._copy(output)

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            call = self._open.pop()
            call.ended = next(self._clock)
            call.output = self._rows(call, "output", output)
            call.weights = _has_weights(output, self._heads, self._count)
            self.calls.append(call)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            module.register_forward_pre_hook(begin, with_kwargs=True),
            module.register_forward_hook(own, prepend=True),
            module.register_forward_hook(end),
        ]

    def _rows(self, call: Call, side: str, value: Any) -> Tensor:
        """A copy of a tensor, which is compared with it once the pass is over."""
        if (copy := self._copy(value)) is not NO_ROWS:
            self.raw.append((call, side, first(value), copy))
        return copy

    def _copy(self, value: Any) -> Tensor:
        rows = as_rows(first(value), self._count)
        return rows if rows is NO_ROWS else rows.detach().to(self._device, copy=True)


def forward(model: Any, tokens: Tensor, **options: Any) -> Any:
    """The output of one pass over ids.

    Raises:
        AlabError: the model cannot be run on token ids alone.
    """
    try:
        with torch.no_grad():
            return model(tokens.to(device_of(model)), **options)
    except AlabError:
        raise
    except Exception as error:  # whatever the model's own code does
        raise AlabError(
            f"{type(model).__name__} cannot read a few tokens: {first_line(error)}",
            "alab captures decoder-only language models that read token ids.",
        ) from error


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Keep hooks on for a while, given their handles, which a generator may make one by one."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextmanager
def outputs_of(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Copies of what modules give for a while, in order."""
    outputs: dict[nn.Module, list[Tensor]] = defaultdict(list)

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        outputs[module].append(first(output).detach().clone())

    with hooked(module.register_forward_hook(note) for module in modules):
        yield outputs


def first(value: Any) -> Any:
    """A module's output, or the first of several."""
    return value[0] if isinstance(value, tuple | list) and value else value


def with_first(value: Any, new: Tensor) -> Any:
    """A module's output with another first tensor, shaped like the one it takes the place of."""
    new = new.reshape(first(value).shape).to(first(value).device)
    return type(value)((new, *value[1:])) if isinstance(value, tuple | list) else new


def first_input(args: tuple, kwargs: dict) -> Any:
    """The first input of a module: the stream that it works on."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def with_first_input(args: tuple, kwargs: dict, new: Tensor) -> tuple[tuple, dict]:
    """The inputs of a module with another first one."""
    old = first_input(args, kwargs)
    new = new.reshape(old.shape).to(old.device)
    if args:
        return (new, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, kwargs | {name: new}


def as_rows(value: Any, tokens: int) -> Tensor:
    """A tensor as (tokens, width); `NO_ROWS` where it has not that form."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return NO_ROWS
    return value.reshape(tokens, -1) if value.numel() == tokens * value.shape[-1] else NO_ROWS


def identical(rows: Tensor, others: Tensor) -> bool:
    """Whether two are the same rows, bit for bit; `NO_ROWS` is the same as nothing."""
    return rows is not NO_ROWS and rows.shape == others.shape and torch.equal(rows, others)


def alike(rows: Tensor, expected: Tensor) -> Tensor:
    """Which rows differ from the expected ones by no more than another order of summation does."""
    size = expected.float().norm(dim=-1)
    apart = (rows.to(expected.device).float() - expected.float()).norm(dim=-1)
    return apart <= (1e-4 if torch.finfo(expected.dtype).eps < 1e-6 else 0.05) * size


def _has_weights(output: Any, heads: int, count: int) -> bool:
    """Whether a module returns causal attention weights, (1, heads, tokens, tokens)."""
    shape = (1, heads, count, count)
    for value in output if isinstance(output, tuple | list) else ():
        if isinstance(value, Tensor) and value.shape == shape and value.is_floating_point():
            table = value.float()
            if (table >= 0).all() and (table.sum(-1) < 1.01).all() and not table.triu(1).any():
                return True
    return False
