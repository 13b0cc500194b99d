"""Rounds tensors to the precision that they are stored in, and counts what does not fit into it."""

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

    def __call__(self, values: Tensor, seen: SiteStats) -> Tensor:
        """Values in the stored precision.

        Returns:
            A tensor of that precision, which may be `values` itself. Where a value is outside its range, or is
            NaN or infinite, a float32 tensor in which such values stay as they are; `seen` counts them.
        """
        short = values.to(self.dtype)
        low, high = (float(end) for end in torch.aminmax(short))
        if -self._limit < low and high < self._limit:  # false for NaN too
            return short
        values = values.float()
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
        The largest absolute error and the largest |hidden_out|; None where sites are missing.
    """
    added = [values[site] for site in ("attn_out", "mlp_down_out") if site in values]
    if "hidden_in" not in values or "hidden_out" not in values or not added:
        return None
    after = values["hidden_out"].float()
    rest = after - values["hidden_in"]
    for contribution in added:
        rest -= contribution
    return _largest(rest), _largest(after)


def _largest(values: Tensor) -> float:
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))
