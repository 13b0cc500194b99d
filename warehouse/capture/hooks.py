"""Hooks that hand over a model's tensors, layer by layer, while a pass runs, and watch how it runs.

What is handed over is what the model went on with: our hooks come after those of others. Where
there are others, a block's own output is taken before them too, and every tensor is copied at once,
since they may change it in place.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from warehouse.capture.our_hooks import OurHooks
from warehouse.errors import AlabError
from warehouse.models.batch import Batch
from warehouse.models.branches import Branches
from warehouse.models.ports import ModelSites, Port
from warehouse.models.probe import first, first_input, unwrapped
from warehouse.models.refusals import RECORDED

if TYPE_CHECKING:
    from warehouse.capture.rounding import Stats

#: Among the sites of a layer's tensors: a block's own output, where hooks on it may have changed
#: it. Not stored.
BLOCK_OUT = "block_out"


@dataclass
class LayerTensors:
    """What one layer did in one forward pass: of one sequence, or of the recorded rows of a batch.

    Attributes:
        layer: 0-based decoder block.
        sites: a (rows, width) tensor per captured site, and of `BLOCK_OUT` where that may differ
            from hidden_out.
        attention: (heads, rows, keys) weights, or None.
        means: of a batch, a (sequences, width) float32 tensor per site whose mean over each
            sequence's tokens is asked for.
    """

    layer: int
    sites: dict[str, Tensor]
    attention: Tensor | None = None
    means: dict[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Rows that it has."""
        if self.attention is not None:
            return self.attention.shape[1]
        return max(map(len, self.sites.values()), default=0)


class Recorder:
    """Registers its hooks once, and records the forward passes made inside `recording`.

    Use it as a context manager; the hooks are gone afterwards, whatever happens:

        with Recorder(model, model_sites, sites={"hidden_out"}, layers=[0, 1]) as recorder:
            with recorder.recording(print):
                model(input_ids)

    Attributes:
        embeddings: (rows, width) of the latest pass.
        ids: what the token embedding read in the latest pass.
        absent: per (layer, site), passes in which the model did not compute it.

    Args:
        model: the model that `model_sites` describes.
        model_sites: where its sites are.
        sites: names of the sites to record.
        layers: layers to record.
        attention: whether to record attention weights; the model must use eager attention.
    """

    def __init__(
        self,
        model: nn.Module,
        model_sites: ModelSites,
        *,
        sites: set[str],
        layers: list[int],
        attention: bool = False,
    ):
        self.model = model
        self.layers = layers
        self.embeddings: Tensor | None = None
        self.ids: Tensor | None = None
        self.absent: dict[tuple[int, str], int] = {}
        self._model_sites = model_sites
        self._sites = sites
        self._attention = attention
        self._hooks = OurHooks()
        self._sink: Callable[[LayerTensors], None] | None = None
        #: None: a pass is over one sequence, all of it recorded.
        self._batch: Batch | Branches | None = None
        self._means: Set[tuple[int, str]] = frozenset()
        self._current: LayerTensors | None = None
        self._tokens = 0  # that the pass reads, with padding
        self._done: set[int] = set()  # layers of the pass
        self._sides: set[tuple[str, str]] = set()  # modules and sides, of the layer, that were read
        self._left: tuple[int, Tensor] | None = None  # the layer that ended last, and what it gave
        #: Per layer, the largest relative difference to what was read next.
        self._gaps: dict[int, Tensor] = {}

    def __enter__(self) -> "Recorder":
        for layer in self.layers:
            self._hook_layer(layer)
        self._hook_readers()
        embedding = self.model.get_submodule(self._model_sites.embedding)
        self._hooks.put(embedding, output=self._on_embedding)
        self._hooks.put(unwrapped(self.model), pre=self._begin_pass, output=self._end_pass)
        self._hooks.watch(self.model)
        RECORDED.add(unwrapped(self.model))
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.remove()
        RECORDED.discard(unwrapped(self.model))
        self._sink = self._current = self.embeddings = self._left = None

    @contextmanager
    def recording(
        self,
        sink: Callable[[LayerTensors], None],
        batch: Batch | Branches | None = None,
        means: Set[tuple[int, str]] = frozenset(),
    ) -> Iterator[None]:
        """Call `sink` for each layer as soon as it has finished, for every pass made inside.

        Args:
            sink: takes the tensors.
            batch: what the pass reads, and which rows of it are recorded: these are picked as a
                layer runs, before anything is copied. Where left out, passes are over one sequence.
            means: (layer, site) whose means over the tokens of each sequence of a batch are taken.

        Raises:
            AlabError: the model does not run each layer once, over the tokens that it was given, in
                a pass.
        """
        self._sink, self._batch, self._means = sink, batch, means
        try:
            yield
        finally:
            self._sink = self._batch = self._current = self._left = None

    def note(self, stats: "Stats") -> "Stats":
        """Add what the passes were like to what their values were like."""
        stats.continuity = {layer: float(gap) for layer, gap in self._gaps.items()}
        stats.absent = self.absent
        return stats

    def behind(self, module: nn.Module, handle: Any) -> None:
        """Keep one more forward hook behind those of others; the recorder removes it."""
        self._hooks.add(handle, module._forward_hooks)

    def _begin_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._sink is None:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._tokens = ids.numel() if isinstance(ids, Tensor) else 0
        told = None if self._batch is None else self._batch.shape
        if told and (not isinstance(ids, Tensor) or ids.shape != told):
            raise AlabError(f"a pass does not read the batch of {told} tokens that was told")
        self._done, self._left, self._current = set(), None, None
        self._hooks.look()

    def _end_pass(self, module: nn.Module, args: tuple, output: Any) -> None:
        missing = [layer for layer in self.layers if layer not in self._done]
        if self._sink is not None and missing:
            raise AlabError(
                f"layer {missing[0]} did not run in a pass",
                "Only passes through every layer can be recorded.",
            )
        self._done = set()

    def _hook_layer(self, layer: int) -> None:
        """Hook a layer itself, what of its modules is recorded, and its attention."""
        place = self._model_sites.layers[layer]
        inner = {s: p for s, p in place.ports.items() if s in self._sites}
        inner = {s: p for s, p in inner.items() if s not in ("hidden_in", "hidden_out")}
        entry, leave = place.ports["hidden_in"], place.ports["hidden_out"]
        self._hooks.put(
            self.model.get_submodule(place.module),
            pre=partial(self._begin_layer, layer, entry),
            output=partial(self._end_layer, layer, leave, frozenset(inner)),
            own=partial(self._before_others, leave),
        )
        by_module: dict[tuple[str, str], list[tuple[str, Port]]] = {}
        for site, port in inner.items():
            for path in port.modules:
                by_module.setdefault((path, port.side), []).append((site, port))
        for (path, side), ports in by_module.items():
            self._hook_ports(path, side, layer, ports)
        if self._attention and place.attention:
            attention = self.model.get_submodule(place.attention)
            self._hooks.put(attention, output=self._on_attention)

    def _begin_layer(
        self, layer: int, entry: Port, module: nn.Module, args: tuple, kwargs: dict
    ) -> None:
        if self._sink is None:
            return
        if layer in self._done or self._current is not None:
            raise AlabError(
                f"layer {layer} runs twice in a pass", "Models that loop cannot be recorded."
            )
        self._current = LayerTensors(layer, {})
        self._sides.clear()
        if "hidden_in" in self._sites:
            self._take("hidden_in", first_input(args, kwargs), entry)

    def _before_others(self, leave: Port, module: nn.Module, args: tuple, output: Any) -> None:
        """Take a block's own output, where hooks of others may change it."""
        if self._current and "hidden_out" in self._sites and self._hooks.others_on(module):
            self._take(BLOCK_OUT, output, leave)

    def _end_layer(
        self,
        layer: int,
        leave: Port,
        inner: frozenset[str],
        module: nn.Module,
        args: tuple,
        output: Any,
    ) -> None:
        if self._sink is None or self._current is None:
            return
        after = self._own(_rows(output), leave)
        if "hidden_out" in self._sites:
            self._current.sites["hidden_out"] = self._picked("hidden_out", after)
            self._take_mean("hidden_out", after)
        for site in inner - self._current.sites.keys():
            self.absent[layer, site] = self.absent.get((layer, site), 0) + 1
        tensors, self._current = self._current, None
        self._done.add(layer)
        self._left = layer, after.detach()
        self._sink(tensors)

    def _hook_ports(self, path: str, side: str, layer: int, ports: list[tuple[str, Port]]) -> None:
        """Take sites at one side of a module, while its layer runs: several layers may share it."""
        module = self.model.get_submodule(path)

        def take(value: Any) -> None:
            if self._current is not None and self._current.layer == layer:
                if (path, side) in self._sides:
                    raise AlabError(
                        f"{path} runs twice in layer {layer}", "Its output would not be one tensor."
                    )
                self._sides.add((path, side))
                for site, port in ports:
                    self._take(site, value, port)

        if side == "input":
            self._hooks.put(
                module, pre=lambda module, args, kwargs: take(first_input(args, kwargs))
            )
        else:
            self._hooks.put(module, output=lambda module, args, output: take(output))

    def _hook_readers(self) -> None:
        """Hook what reads a layer's output next: the next layer, or what comes after the last."""
        layers = self._model_sites.layers
        paths = {
            layer: layers[layer + 1].module for layer in self.layers if layer + 1 < len(layers)
        }
        if self.layers[-1] == len(layers) - 1 and self._model_sites.reader:
            paths[self.layers[-1]] = self._model_sites.reader
        for layer, path in paths.items():
            self._hooks.put(self.model.get_submodule(path), pre=partial(self._compare, layer))

    def _compare(self, layer: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Compare what a layer gave with what is read of it.

        Padding is not compared: nothing depends on it, a model may set it to anything, and a token
        of padding that sees no key may be NaN.
        """
        if self._sink is None or self._left is None or self._left[0] != layer:
            return
        (_, given), self._left = self._left, None
        read = first(first_input(args, kwargs)).detach()
        if read.shape[:-1].numel() < len(given):
            return  # a head that reads some tokens only
        before = self._gaps.setdefault(layer, torch.zeros((), device=given.device))
        if not _same_memory(given, read):
            read = read.reshape(given.shape).to(given.device)
            if self._batch is not None and self._batch.tokens is not None:
                tokens = self._batch.tokens.to(given.device)
                given, read = given[tokens], read[tokens]
            self._gaps[layer] = torch.maximum(before, _difference(given, read))

    def _on_attention(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._current is None:
            return
        count = 1 if self._batch is None else self._batch.shape[0]
        for value in output:
            if isinstance(value, Tensor) and value.ndim == 4 and value.shape[0] == count:
                weights = value[0] if self._batch is None else self._batch.pick_attention(value)
                self._current.attention = weights.clone() if self._hooks.others else weights

    def _on_embedding(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._sink is not None and isinstance(output, Tensor):
            self.ids = first_input(args, {})
            rows = _rows(output)
            rows = rows if self._batch is None else self._batch.pick(rows)
            self.embeddings = rows.clone() if self._hooks.others else rows

    def _take(self, site: str, value: Any, port: Port) -> None:
        """Record the rows of a site; what several modules give of it is added."""
        assert self._current is not None
        sites = self._current.sites
        tensor = self._own(self._picked(site, _rows(value)), port)
        sites[site] = sites[site] + tensor if site in sites and port.more else tensor
        if self._means:
            self._take_mean(site, self._own(_rows(value), port))

    def _take_mean(self, site: str, rows: Tensor) -> None:
        """Add the mean over each sequence's tokens of a site, where it is asked for."""
        assert self._current is not None
        if self._batch is not None and (self._current.layer, site) in self._means:
            means, more = self._current.means, self._batch.means(rows)
            means[site] = means[site] + more if site in means else more

    def _picked(self, site: str, rows: Tensor) -> Tensor:
        """The recorded ones of a pass's rows: all of one sequence, or those that a batch names."""
        if self._tokens and len(rows) != self._tokens:
            assert self._current is not None
            raise AlabError(
                f"{site} of layer {self._current.layer} has {len(rows)} rows "
                f"for {self._tokens} tokens",
                "Virtual tokens and other changes of a sequence's length cannot be recorded.",
            )
        return rows if self._batch is None else self._batch.pick(rows)

    def _own(self, rows: Tensor, port: Port) -> Tensor:
        """What of a tensor a site is; a copy only where it would be changed afterwards."""
        if port.columns is not None:
            rows = rows[:, port.columns]
        if port.scale != 1.0:
            return rows * port.scale
        return rows.clone() if port.copy or self._hooks.others else rows


def _rows(value: Any) -> Tensor:
    """The first tensor of what a module takes or gives, as (tokens of all sequences, width)."""
    tensor = first(value)
    return tensor.reshape(-1, tensor.shape[-1])


def _same_memory(given: Tensor, read: Tensor) -> bool:
    """Whether what is read is the tensor that was given, and not a copy."""
    return read.numel() == given.numel() and read.data_ptr() == given.data_ptr()


def _difference(given: Tensor, read: Tensor) -> Tensor:
    """The largest difference of a token, relative to its own largest value."""
    size = torch.maximum(given.abs().amax(-1), read.abs().amax(-1)).clamp_min(1e-30)
    return ((given - read.float()).abs().amax(-1) / size).amax().nan_to_num(nan=0.0)
