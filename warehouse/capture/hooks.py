"""Hooks that hand over a model's tensors, layer by layer, while a forward pass still runs, and watch how it runs.

What is handed over is what the model went on with: our hooks come after those of others. Where
    there are others, a
block's own output is taken before them too, and every tensor is copied at once, since they may
change it in place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError
from warehouse.models.passes import RECORDED
from warehouse.models.ports import ModelSites, Port
from warehouse.models.probe import first, first_input, unwrapped

if TYPE_CHECKING:
    from warehouse.capture.rounding import Stats

#: Among the sites of a layer's tensors: a block's own output, where hooks on it may have changed
#: it. Not stored.
BLOCK_OUT = "block_out"


@dataclass
class LayerTensors:
    """What one layer did in one forward pass of one sequence.

    Attributes:
        layer: 0-based decoder block.
        sites: a (tokens, width) tensor per captured site, and of `BLOCK_OUT` where that may differ
            from hidden_out.
        attention: (heads, tokens, keys) weights, or None.
    """

    layer: int
    sites: dict[str, Tensor]
    attention: Tensor | None = None


class Recorder:
    """Registers its hooks once, and records the forward passes made inside `recording`.

    Use it as a context manager; the hooks are gone afterwards, whatever happens:

        with Recorder(model, found, sites={"hidden_out"}, layers=[0, 1]) as recorder:
            with recorder.recording(print):
                model(input_ids)

    Attributes:
        embeddings: (tokens, width) of the latest pass.
        ids: what the token embedding read in the latest pass.
        absent: per (layer, site), passes in which the model did not compute it.

    Args:
        model: the model that `found` describes; batch size 1.
        found: where its sites are.
        sites: names of the sites to record.
        layers: layers to record.
        attention: whether to record attention weights; the model must use eager attention.
    """

    def __init__(
        self,
        model: nn.Module,
        found: ModelSites,
        *,
        sites: set[str],
        layers: list[int],
        attention: bool = False,
    ):
        self.model = model
        self.found = found
        self.sites = sites
        self.layers = layers
        self.attention = attention
        self.embeddings: Tensor | None = None
        self.ids: Tensor | None = None
        self.absent: dict[tuple[int, str], int] = {}
        self._hooks = _Hooks()
        self._sink: Callable[[LayerTensors], None] | None = None
        self._current: LayerTensors | None = None
        self._tokens = 0  # that the pass reads
        self._ran: list[int] = []  # layers of the pass
        self._taken: set[tuple[str, str]] = set()  # modules and sides of the layer that runs
        self._left: tuple[int, Tensor] | None = None  # the layer that ended last, and what it gave
        self._gaps: dict[
            int, Tensor
        ] = {}  # per layer, the largest relative difference to what was read next

    def __enter__(self) -> "Recorder":
        for layer in self.layers:
            self._hook_layer(layer)
        self._hook_readers()
        put = self._hooks.put
        put(self.model.get_submodule(self.found.embedding), output=self._on_embedding)
        self._hooks.put(unwrapped(self.model), pre=self._begin_pass, output=self._end_pass)
        self._hooks.watch(self.model)
        RECORDED.add(unwrapped(self.model))
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.remove()
        RECORDED.discard(unwrapped(self.model))
        self._sink = self._current = self.embeddings = self._left = None

    @contextmanager
    def recording(self, sink: Callable[[LayerTensors], None]) -> Iterator[None]:
        """Call `sink` for each layer as soon as it has finished, for every pass made inside.

        Raises:
            AlabError: the model does not run each layer once, over the tokens that it was given, in
                a pass.
        """
        self._sink = sink
        try:
            yield
        finally:
            self._sink = self._current = self._left = None

    def note(self, stats: "Stats") -> "Stats":
        """Add what was seen of the passes to what was seen in their values."""
        stats.continuity = {layer: float(gap) for layer, gap in self._gaps.items()}
        stats.absent = self.absent
        return stats

    def behind(self, module: nn.Module, handle: Any) -> None:
        """Keep one more forward hook behind those that others put on the module; it goes with the recorder."""
        self._hooks.add(handle, module._forward_hooks)

    def _begin_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._sink is None:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._tokens = ids.numel() if isinstance(ids, Tensor) else 0
        self._ran, self._left, self._current = [], None, None
        self._hooks.look()

    def _end_pass(self, module: nn.Module, args: tuple, output: Any) -> None:
        missing = [layer for layer in self.layers if layer not in self._ran]
        if self._sink is not None and missing:
            raise AlabError(
                f"layer {missing[0]} did not run in a pass",
                "Only passes through every layer can be recorded.",
            )
        self._ran = []

    def _hook_layer(self, layer: int) -> None:
        found = self.found.layers[layer]
        module = self.model.get_submodule(found.module)
        wanted = {site: port for site, port in found.ports.items() if site in self.sites}
        entry, leave = found.ports["hidden_in"], found.ports["hidden_out"]
        expected = wanted.keys() - {"hidden_in", "hidden_out"}

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self._sink is None:
                return
            if layer in self._ran or self._current is not None:
                raise AlabError(
                    f"layer {layer} runs twice in a pass", "Models that loop cannot be recorded."
                )
            self._current = LayerTensors(layer, {})
            self._taken.clear()
            if "hidden_in" in wanted:
                self._current.sites["hidden_in"] = self._take(first_input(args, kwargs), entry)

        def own(module: nn.Module, args: tuple, output: Any) -> None:
            if (
                self._current is not None
                and "hidden_out" in wanted
                and self._hooks.others_on(module)
            ):
                self._current.sites[BLOCK_OUT] = self._take(output, leave)

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            if self._sink is None or self._current is None:
                return
            after = self._take(output, leave)
            if "hidden_out" in wanted:
                self._current.sites["hidden_out"] = after
            for site in expected - self._current.sites.keys():
                self.absent[layer, site] = self.absent.get((layer, site), 0) + 1
            done, self._current = self._current, None
            self._ran.append(layer)
            self._left = layer, after.detach()
            self._check_rows(done)
            self._sink(done)

        self._hooks.put(module, pre=begin, output=end, own=own)
        by_module: dict[tuple[str, str], list[tuple[str, Port]]] = {}
        for site in expected:
            for path in wanted[site].modules:
                by_module.setdefault((path, wanted[site].side), []).append((site, wanted[site]))
        for (path, side), ports in by_module.items():
            self._hook_ports(path, side, layer, ports)
        if self.attention and found.attention:
            self._hooks.put(self.model.get_submodule(found.attention), output=self._on_attention)

    def _hook_ports(self, path: str, side: str, layer: int, ports: list[tuple[str, Port]]) -> None:
        """Take some sites at one side of a module, while its layer runs: several layers may share the module."""
        module = self.model.get_submodule(path)

        def take(value: Any) -> None:
            if self._current is not None and self._current.layer == layer:
                if (path, side) in self._taken:
                    raise AlabError(
                        f"{path} runs twice in layer {layer}", "Its output would not be one tensor."
                    )
                self._taken.add((path, side))
                sites = self._current.sites
                for site, port in ports:
                    tensor = self._take(value, port)
                    sites[site] = sites[site] + tensor if site in sites and port.more else tensor

        if side == "input":
            self._hooks.put(
                module, pre=lambda module, args, kwargs: take(first_input(args, kwargs))
            )
        else:
            self._hooks.put(module, output=lambda module, args, output: take(output))

    def _hook_readers(self) -> None:
        """Compare what each layer gives with what is read of it next: by the next layer, or after the last one."""
        paths = {layer: self.found.layers[layer + 1].module for layer in self.layers[:-1]}
        last = self.layers[-1]
        if last + 1 < len(self.found.layers):
            paths[last] = self.found.layers[last + 1].module
        elif self.found.reader:
            paths[last] = self.found.reader
        for layer, path in paths.items():

            def read(module: nn.Module, args: tuple, kwargs: dict, layer: int = layer) -> None:
                if self._sink is not None and self._left is not None and self._left[0] == layer:
                    (_, given), self._left = self._left, None
                    value = first(first_input(args, kwargs)).detach()
                    if len(value) == 1 and value.shape[-2] < len(given):
                        return  # a head that reads some tokens only
                    before = self._gaps.setdefault(layer, torch.zeros((), device=given.device))
                    if not _same_memory(given, value):
                        self._gaps[layer] = torch.maximum(before, _difference(given, value))

            self._hooks.put(self.model.get_submodule(path), pre=read)

    def _check_rows(self, done: LayerTensors) -> None:
        for site, tensor in done.sites.items():
            if self._tokens and len(tensor) != self._tokens:
                raise AlabError(
                    f"{site} of layer {done.layer} has {len(tensor)} rows for {self._tokens} tokens",
                    "Virtual tokens and other changes of a sequence's length cannot be recorded.",
                )

    def _on_attention(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._current is not None:
            for value in output:
                if isinstance(value, Tensor) and value.ndim == 4 and value.shape[0] == 1:
                    self._current.attention = value[0].clone() if self._hooks.others else value[0]

    def _on_embedding(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._sink is not None and isinstance(output, Tensor):
            self.ids = first_input(args, {})
            rows = output.reshape(-1, output.shape[-1])
            self.embeddings = rows.clone() if self._hooks.others else rows

    def _take(self, value: Any, port: Port) -> Tensor:
        """The tensor of a site as (tokens, width); a copy only where it would be changed afterwards."""
        value = first(value)
        value = value.reshape(-1, value.shape[-1])
        if port.columns is not None:
            value = value[:, port.columns]
        if port.scale != 1.0:
            return value * port.scale
        return value.clone() if port.copy or self._hooks.others else value


class _Hooks:
    """Our hooks on a model's modules, kept behind those of others.

    Attributes:
        handles: what removes them.
        others: whether there were hooks of others in the pass that runs.
    """

    def __init__(self):
        self.handles: list[Any] = []
        self.others = False
        self._counts: dict[nn.Module, int] = {}  # hooks of ours on each module
        self._ours: list[
            tuple[Any, int, bool]
        ] = []  # a module's hooks, the id of one of ours, whether it is first

    def put(
        self, module: nn.Module, *, pre: Any = None, output: Any = None, own: Any = None
    ) -> None:
        """Hook a module: before it runs, after it with what others made of its output, and with its own output."""
        if pre is not None:
            self.add(
                module.register_forward_pre_hook(pre, with_kwargs=True), module._forward_pre_hooks
            )
        if output is not None:
            self.add(module.register_forward_hook(output), module._forward_hooks)
        if own is not None:
            self.add(
                module.register_forward_hook(own, prepend=True), module._forward_hooks, begins=True
            )

    def add(self, handle: Any, hooks: Any, *, begins: bool = False) -> None:
        """Take charge of a hook among those of a module: its place is last, or first where it `begins`."""
        self.handles.append(handle)
        self._ours.append((hooks, handle.id, begins))

    def watch(self, model: nn.Module) -> None:
        """From now on, hooks that are more than ours are those of others."""
        ids = {handle.id for handle in self.handles}
        for module in model.modules():
            self._counts[module] = sum(
                key in ids for key in (*module._forward_pre_hooks, *module._forward_hooks)
            )

    def others_on(self, module: nn.Module) -> bool:
        """Whether others have hooks on a module that may change a tensor; those of transformers itself only look."""
        if len(module._forward_hooks) + len(module._forward_pre_hooks) <= self._counts.get(
            module, 0
        ):
            return False
        ids = {handle.id for handle in self.handles}
        hooks = [*module._forward_pre_hooks.items(), *module._forward_hooks.items()]
        makers = [getattr(hook, "__module__", None) or "" for key, hook in hooks if key not in ids]
        return any(not maker.startswith("transformers.") for maker in makers)

    def look(self) -> None:
        """Before a pass: see whether others have hooks, and bring ours behind them again."""
        anywhere = (
            nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
        )
        self.others = bool(anywhere) or any(map(self.others_on, self._counts))
        if self.others:
            for hooks, key, begins in self._ours:
                hooks.move_to_end(key, last=not begins)

    def remove(self) -> None:
        """Take all of them off."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def _same_memory(given: Tensor, read: Tensor) -> bool:
    """Whether what is read is the tensor that was given, and not a copy."""
    return read.numel() == given.numel() and read.data_ptr() == given.data_ptr()


def _difference(given: Tensor, read: Tensor) -> Tensor:
    """The largest difference between what a layer gave and what is read of it.

    Each token's is relative to its own largest value.
    """
    read = read.reshape(given.shape).to(given.device).float()
    size = torch.maximum(given.abs().amax(-1), read.abs().amax(-1)).clamp_min(1e-30)
    return ((given - read).abs().amax(-1) / size).amax().nan_to_num(nan=0.0)
