"""One forward pass over a few tokens that notes what every module takes and gives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError, first_line
from warehouse.models.offload import device_of
from warehouse.models.weights import embedding_rows

#: Tokens that a probe reads.
TOKENS = 8


@dataclass
class Call:
    """One call of a module during the probe; tensors are (tokens, width) copies.

    Attributes:
        path: path of the module in the model.
        module: the module.
        began, ended: when, counted in calls that began or ended; a call inside another lies between
            its two.
        inputs: its first input, after the hooks on it; None where that is not one vector per token.
        output: its first output, after the hooks on it; likewise.
        given, own: the same before the hooks of others on it.
        weights: whether it returns attention weights.
        changed: sides (`input`, `output`) whose tensor the model changed in place later.
    """

    path: str
    module: nn.Module
    began: int
    ended: int = -1
    inputs: Tensor | None = None
    output: Tensor | None = None
    given: Tensor | None = None
    own: Tensor | None = None
    weights: bool = False
    changed: set[str] = field(default_factory=set)

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


def unwrapped(model: Any) -> Any:
    """The model inside a PEFT wrapper, which `generate` of the wrapper calls by itself; else the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def sample(model: Any, *, count: int = TOKENS, seed: int = 0) -> Tensor:
    """(1, count) ids to probe with; none that stands for an image or ends a sequence."""
    config = model.config.get_text_config()
    values = {**model.config.to_dict(), **config.to_dict()}
    special = {
        v
        for name, v in values.items()
        if name.endswith(("token_id", "token_index")) and isinstance(v, int)
    }
    size = min(config.vocab_size, embedding_rows(model) or config.vocab_size)
    plain = torch.tensor([token for token in range(size) if token not in special] or [0])
    return plain[
        torch.randint(0, len(plain), (1, count), generator=torch.Generator().manual_seed(seed))
    ]


def trace(model: Any, tokens: Tensor) -> Trace:
    """Run the model once on (1, tokens) ids and note every call of every module.

    Raises:
        AlabError: the model cannot be run on token ids alone.
    """
    count = tokens.numel()
    heads = getattr(model.config.get_text_config(), "num_attention_heads", 0)
    notes = _Notes(count, heads, device_of(model))
    handles = []
    try:
        for path, module in model.named_modules():
            if path:
                handles += notes.watch(path, module)
        output = run(model, tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for call, side, raw, rows in notes.raw:
        if not torch.equal(
            as_rows(raw, count).to(rows.device), rows
        ):  # tensors of inference mode have no version
            call.changed.add(side)
    return Trace(tokens, notes.calls, output)


class _Notes:
    """Takes down calls as they happen."""

    def __init__(self, count: int, heads: int, device: torch.device):
        self._device = (
            device  # where all tensors are compared, also of a model that is spread over several
        )
        self.calls: list[Call] = []
        self.raw: list[tuple[Call, str, Tensor, Tensor]] = []
        self._count, self._heads = count, heads
        self._open: list[Call] = []
        self._clock = 0

    def watch(self, path: str, module: nn.Module) -> list[Any]:
        """Put hooks on a module, the last of all and, where others are on it, the first too; gives their handles."""

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._open.append(
                Call(path, module, self._tick(), given=self._copy(first_input(args, kwargs)))
            )

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            call = self._open[-1]
            call.inputs = self._rows(call, "input", first_input(args, kwargs))

        def own(module: nn.Module, args: tuple, output: Any) -> None:
            self._open[-1].own = self._copy(output)

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            call = self._open.pop()
            call.ended = self._tick()
            call.output = self._rows(call, "output", output)
            call.weights = _has_weights(output, self._heads, self._count)
            self.calls.append(call)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            module.register_forward_pre_hook(begin, with_kwargs=True),
            module.register_forward_hook(own, prepend=True),
            module.register_forward_hook(end),
        ]

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _rows(self, call: Call, side: str, value: Any) -> Tensor | None:
        """A copy of a tensor, which is compared with it once the pass is over."""
        if (copy := self._copy(value)) is not None:
            self.raw.append((call, side, first(value), copy))
        return copy

    def _copy(self, value: Any) -> Tensor | None:
        rows = as_rows(first(value), self._count)
        return None if rows is None else rows.detach().to(self._device, copy=True)


def run(model: Any, tokens: Tensor, **options: Any) -> Any:
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
def hooked(handles: Callable[[], Iterator[Any]]) -> Iterator[None]:
    """Put hooks on for a while; `handles` yields their handles."""
    made: list[Any] = []
    try:
        for handle in handles():
            made.append(handle)
        yield
    finally:
        for handle in made:
            handle.remove()


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
    given = first_input(args, kwargs)
    new = new.reshape(given.shape).to(given.device)
    if args:
        return (new, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, kwargs | {name: new}


def as_rows(value: Any, tokens: int) -> Tensor | None:
    """A tensor as (tokens, width); None where it has not that form."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return None
    return value.reshape(tokens, -1) if value.numel() == tokens * value.shape[-1] else None


def alike(rows: Tensor, expected: Tensor) -> Tensor:
    """Which rows differ from the expected ones by no more than another order of summation explains."""
    apart, size = (
        (rows.to(expected.device).float() - expected.float()).norm(dim=-1),
        expected.float().norm(dim=-1),
    )
    return apart <= (1e-4 if torch.finfo(expected.dtype).eps < 1e-6 else 0.05) * size


def _has_weights(output: Any, heads: int, count: int) -> bool:
    """Whether a module returns causal attention weights, (1, heads, tokens, tokens)."""
    for value in output if isinstance(output, tuple | list) else ():
        if (
            isinstance(value, Tensor)
            and value.shape == (1, heads, count, count)
            and value.is_floating_point()
        ):
            table = value.float()
            if (table >= 0).all() and (table.sum(-1) < 1.01).all() and not table.triu(1).any():
                return True
    return False
