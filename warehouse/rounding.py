"""Rounds tensors to the precision that they are stored in, and counts what does not fit into it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SiteStats:
    """What was seen in the values of a site of a layer."""

    out_of_range: int = 0
    nonfinite: int = 0


@dataclass
class Stats:
    """What was seen in the values of a run.

    Attributes:
        sites: per (layer or None, site).
        residual: per layer, (largest absolute error of the residual identity, largest |hidden_out|).
    """

    sites: dict[tuple[int | None, str], SiteStats] = field(default_factory=dict)
    residual: dict[int, tuple[float, float]] = field(default_factory=dict)

    def site(self, layer: int | None, site: str) -> SiteStats:
        """What was seen in a site, to be added to."""
        return self.sites.setdefault((layer, site), SiteStats())


class Rounding:
    """Rounds to one precision.

    Args:
        store_dtype: float32, float16 or bfloat16.
    """

    def __init__(self, store_dtype: str):
        self.dtype: torch.dtype = getattr(torch, store_dtype)
        self._limit = torch.finfo(self.dtype).max

    def __call__(self, values: Tensor, seen: SiteStats, diagonal: int | None = None) -> Tensor:
        """Values in the stored precision.

        Args:
            values: of any shape, not empty.
            seen: counts what does not fit.
            diagonal: where given, what lies above this diagonal, as in `torch.tril`, is not stored and not counted.

        Returns:
            A tensor of that precision, which may be `values` itself. Where a value is outside its range, or is
            NaN or infinite, a float32 tensor in which such values stay as they are; `seen` counts them.
        """
        short = values.to(self.dtype)
        low, high = (float(end) for end in torch.aminmax(short))
        if -self._limit < low and high < self._limit:  # false for NaN too
            return short
        values = values.float() if diagonal is None else values.float().tril(diagonal)
        finite = values.isfinite()
        outside = finite & (values.abs() > self._limit)
        seen.nonfinite += int((~finite).sum())
        seen.out_of_range += int(outside.sum())
        return torch.where(outside | ~finite, values, short.float())


def residual_error(values: dict[str, Tensor]) -> tuple[float, float] | None:
    """How far a layer is from `hidden_out = hidden_in + attn_out + mlp_down_out`.

    Args:
        values: (rows, width) tensors of the layer's sites, unrounded.

    Returns:
        The largest absolute error and the largest finite |hidden_out|; None where sites are missing. An error that
        is NaN says nothing and is passed over; an infinite one counts.
    """
    added = [values[site] for site in ("attn_out", "mlp_down_out") if site in values]
    if "hidden_in" not in values or "hidden_out" not in values or not added:
        return None
    after = values["hidden_out"].float()
    rest = after - values["hidden_in"]
    for contribution in added:
        rest -= contribution
    return _largest(rest, torch.isnan), _largest(after, lambda values: ~values.isfinite())


def _largest(values: Tensor, passed_over: Callable[[Tensor], Tensor]) -> float:
    """The largest absolute value, but for what is passed over; 0 where nothing is left."""
    low, high = torch.aminmax(values)
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        largest = float(values.masked_fill(passed_over(values), 0.0).abs().max())
    return largest
