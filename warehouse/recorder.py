"""Hooks that hand over a model's tensors, layer by layer, while a forward pass still runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from warehouse.lake import STATE_SITES
from warehouse.sites import ModelSites, Port

#: Which sites each flag of a scenario's `capture` keeps.
FLAGS = {
    "hidden_states": STATE_SITES,
    "qkv": ("q", "k", "v"),
    "mlp": ("mlp_gate", "mlp_up", "mlp_down_in"),
}


@dataclass
class LayerTensors:
    """What one layer did in one forward pass of one sequence.

    Attributes:
        layer: 0-based decoder block.
        sites: a (tokens, width) tensor per captured site.
        attention: (heads, tokens, keys) weights, or None.
    """

    layer: int
    sites: dict[str, Tensor]
    attention: Tensor | None = None

    def only(self, sites: set[str]) -> "LayerTensors":
        """The same without other sites."""
        kept = {site: tensor for site, tensor in self.sites.items() if site in sites}
        return LayerTensors(self.layer, kept, self.attention)


class Recorder:
    """Registers its hooks once, and records the forward passes made inside `recording`.

    Use it as a context manager; the hooks are gone afterwards, whatever happens:

        with Recorder(model, found, sites={"hidden_out"}, layers=[0, 1]) as recorder:
            with recorder.recording(print):
                model(input_ids)

    Args:
        model: the model that `found` describes; batch size 1.
        found: where its sites are.
        sites: names of the sites to record.
        layers: layers to record.
        attention: whether to record attention weights; the model must use eager attention.
    """

    def __init__(
        self, model: nn.Module, found: ModelSites, *, sites: set[str], layers: list[int], attention: bool = False
    ):
        self.model = model
        self.found = found
        self.sites = sites
        self.layers = layers
        self.attention = attention
        self.embeddings: Tensor | None = None
        self._handles: list[Any] = []
        self._sink: Callable[[LayerTensors], None] | None = None
        self._current: LayerTensors | None = None

    def __enter__(self) -> "Recorder":
        modules = dict(self.model.named_modules())
        for layer in self.layers:
            self._hook_layer(modules, layer)
        embedding = modules[self.found.embedding]
        self._handles.append(embedding.register_forward_hook(self._on_embedding))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sink = self._current = self.embeddings = None

    @contextmanager
    def recording(self, sink: Callable[[LayerTensors], None]) -> Iterator[None]:
        """Call `sink` for each layer as soon as it has finished, for every pass made inside."""
        self._sink = sink
        try:
            yield
        finally:
            self._sink = self._current = None

    def _hook_layer(self, modules: dict[str, nn.Module], layer: int) -> None:
        found = self.found.layers[layer]
        wanted = {site: port for site, port in found.ports.items() if site in self.sites}
        entry = wanted.get("hidden_in")

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self._sink is not None:
                self._current = LayerTensors(layer, {})
                if entry is not None:
                    self._current.sites["hidden_in"] = _take(args[0] if args else kwargs["hidden_states"], entry)

        self._handles.append(modules[found.module].register_forward_pre_hook(begin, with_kwargs=True))
        by_module: dict[tuple[str, str], list[tuple[str, Port]]] = {}
        for site, port in wanted.items():
            if site not in ("hidden_in", "hidden_out"):
                by_module.setdefault((port.module, port.side), []).append((site, port))
        for (path, side), ports in by_module.items():
            self._handles.append(_hook(self, modules[path], side, ports))
        if self.attention and found.attention:
            self._handles.append(modules[found.attention].register_forward_hook(self._on_attention))
        leave = wanted.get("hidden_out")

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            if self._sink is not None and self._current is not None:
                if leave is not None:
                    self._current.sites["hidden_out"] = _take(output, leave)
                done, self._current = self._current, None
                self._sink(done)

        self._handles.append(modules[found.module].register_forward_hook(end))

    def _on_attention(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._current is not None:
            for value in output:
                if isinstance(value, Tensor) and value.ndim == 4 and value.shape[0] == 1:
                    self._current.attention = value[0]

    def _on_embedding(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._sink is not None and isinstance(output, Tensor):
            self.embeddings = output.reshape(-1, output.shape[-1])


def _hook(recorder: Recorder, module: nn.Module, side: str, ports: list[tuple[str, Port]]) -> Any:
    def take(value: Any) -> None:
        if recorder._current is not None:
            for site, port in ports:
                recorder._current.sites[site] = _take(value, port)

    if side == "input":
        return module.register_forward_pre_hook(lambda module, args: take(args))
    return module.register_forward_hook(lambda module, args, output: take(output))


def _take(value: Any, port: Port) -> Tensor:
    """The tensor of a site as (tokens, width); a copy only where the model would change it."""
    if isinstance(value, tuple | list):
        value = value[0]
    value = value.reshape(-1, value.shape[-1])
    if port.columns is not None:
        value = value[:, port.columns]
    if port.scale != 1.0:
        return value * port.scale
    return value.clone() if port.copy else value
