"""How much a run will take on disk, from what it keeps; needs no model, and so no torch."""

from dataclasses import dataclass

from warehouse.vocabulary import STATE_SITES

#: Bytes that a stored value takes on disk, measured on real activations, rounded up.
_BYTES_PER_VALUE = {"float16": 1.8, "bfloat16": 1.45, "float32": 3.6}


@dataclass(frozen=True)
class Amounts:
    """What a run keeps.

    Attributes:
        tokens: whose vectors are kept.
        pairs: of a token and an earlier one, whose attention weight is kept.
        states: last-token states.
    """

    tokens: int
    pairs: int
    states: int

    def bytes(
        self, *, layers: int, heads: int, hidden_size: int, width: int, store_dtype: str
    ) -> int:
        """Bytes on disk, about.

        Args:
            layers: that are kept.
            heads: attention heads of a layer.
            hidden_size: of the residual stream.
            width: values of a token, of all layers and sites together.
            store_dtype: what values are rounded to.
        """
        values = self.tokens * width + self.pairs * heads * layers
        values += self.states * layers * len(STATE_SITES) * hidden_size
        return int(values * _BYTES_PER_VALUE[store_dtype])
