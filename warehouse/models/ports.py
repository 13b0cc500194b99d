"""Where tensors pass in a model: what a probe has found, and what hooks are put on."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Port:
    """Where a tensor passes: the input or the output of a module.

    Attributes:
        module: path of the module in the model.
        side: `input` or `output`.
        width: width of the vectors.
        columns: which columns of a fused projection; None for all.
        scale: factor that the model applies before adding to the residual stream.
        copy: whether the model changes the tensor in place afterwards, so that it must be copied at
            once.
        more: paths of further modules whose outputs are added: shared experts beside routed ones,
            for one.
    """

    module: str
    side: str
    width: int
    columns: slice | Tensor | None = None
    scale: float = 1.0
    copy: bool = False
    more: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all modules that the tensor is taken from."""
        return self.module, *self.more

    @property
    def part(self) -> str:
        """What of the module's side it is, such as ` × 0.22`; empty for the whole."""
        columns = "" if self.columns is None else "[interleaved]"
        if isinstance(self.columns, slice):
            columns = f"[{self.columns.start}:{self.columns.stop}]"
        return columns + (f" × {self.scale:g}" if self.scale != 1.0 else "")

    def __str__(self) -> str:
        return " + ".join(f"{module}.{self.side}{self.part}" for module in self.modules)


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

    def lacks(self, names: Iterable[str], reason: str) -> None:
        """Say why sites are absent."""
        self.reasons |= dict.fromkeys(names, reason)


@dataclass
class ModelSites:
    """What was found in a model.

    Attributes:
        layers: its decoder layers in order.
        embedding: path of the token embedding.
        embedding_width: width of what it gives.
        hidden_size: width of the residual stream.
        vocabulary: width of the logits.
        reader: path of the module that reads the last layer's output; None where none reads it as
            it is.
        trees: whether it was shown to read several sequences as a tree in one pass.
        rewinds: whether its key-value cache was shown to go back to what two sequences share.
        decodes: whether a decode step gives what reading the same tokens at once gives.
        batches: whether it was shown to read several padded sequences in one pass.
        branches: whether it was shown to read several whole sequences as a tree in one pass.
    """

    layers: list[LayerSites]
    embedding: str
    embedding_width: int
    hidden_size: int
    vocabulary: int
    reader: str | None = None
    trees: bool = False
    rewinds: bool = False
    decodes: bool = True
    batches: bool = False
    branches: bool = False
