"""Rounds tensors to the precision that they are stored in, and counts what does not fit."""

import json
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from warehouse.capture.hooks import BLOCK_OUT


@dataclass
class SiteStats:
    """How many values of a site of a layer are kept as they were."""

    out_of_range: int = 0
    nonfinite: int = 0


@dataclass
class Stats:
    """What the values of a run were like.

    Attributes:
        sites: per (layer or None, site).
        residual: per layer, the largest `residual_error`.
        changed: per layer, the largest `change`.
        continuity: per layer, the largest difference to what was read of it next.
        absent: per (layer, site), passes in which the model did not compute it.
        batch: per layer, the largest difference of a prompt read in a batch to the same read alone.
        shapes: per (prompts, tokens) of a batch, whether prompts in it are what they are alone.
    """

    sites: dict[tuple[int | None, str], SiteStats] = field(default_factory=dict)
    residual: dict[int, float] = field(default_factory=dict)
    changed: dict[int, float] = field(default_factory=dict)
    continuity: dict[int, float] = field(default_factory=dict)
    absent: dict[tuple[int, str], int] = field(default_factory=dict)
    batch: dict[int, float] = field(default_factory=dict)
    shapes: dict[tuple[int, int], bool] = field(default_factory=dict)

    def site(self, layer: int | None, site: str) -> SiteStats:
        """The counts of a site, to be added to."""
        return self.sites.setdefault((layer, site), SiteStats())

    def add(self, other: "Stats") -> None:
        """Take in what the values of another part of the run were like."""
        for at, counts in other.sites.items():
            site = self.site(*at)
            site.out_of_range += counts.out_of_range
            site.nonfinite += counts.nonfinite
        for own, more in (
            (self.residual, other.residual),
            (self.changed, other.changed),
            (self.continuity, other.continuity),
            (self.batch, other.batch),
        ):
            for layer, value in more.items():
                own[layer] = max(own.get(layer, 0.0), value)
        for at, count in other.absent.items():
            self.absent[at] = self.absent.get(at, 0) + count
        self.shapes |= other.shapes

    def to_json(self) -> bytes:
        """All of it, for `from_json`."""
        fields = asdict(self)
        fields["sites"] = [[*at, asdict(counts)] for at, counts in self.sites.items()]
        fields["absent"] = [[*at, count] for at, count in self.absent.items()]
        fields["shapes"] = [[*shape, right] for shape, right in self.shapes.items()]
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, record: bytes) -> "Stats":
        """What `to_json` wrote."""
        fields = json.loads(record)
        sites = {(layer, site): SiteStats(**counts) for layer, site, counts in fields.pop("sites")}
        absent = {(layer, site): count for layer, site, count in fields.pop("absent")}
        shapes = {(prompts, tokens): ok for prompts, tokens, ok in fields.pop("shapes", [])}
        by_layer = {
            name: {int(layer): value for layer, value in values.items()}
            for name, values in fields.items()
        }
        return cls(sites=sites, absent=absent, shapes=shapes, **by_layer)


class Rounding:
    """Rounds to one precision.

    Args:
        store_dtype: float32, float16 or bfloat16.
    """

    def __init__(self, store_dtype: str):
        self.dtype: torch.dtype = getattr(torch, store_dtype)
        self._limit = torch.finfo(self.dtype).max

    def __call__(self, values: Tensor, counts: SiteStats, diagonal: int | None = None) -> Tensor:
        """Values in the stored precision.

        Args:
            values: of any shape, not empty.
            counts: what does not fit is added to them.
            diagonal: where given, what lies above this diagonal, as in `torch.tril`, is not stored
                and not counted.

        Returns:
            A contiguous tensor of that precision, which may be `values` itself. Where a value is
            outside its range, or is NaN or infinite, a float32 tensor in which such values stay as
            they are, and are counted.
        """
        short = values.to(self.dtype).contiguous()  # a part of a larger tensor is slow to search
        low, high = (float(end) for end in torch.aminmax(short))
        if -self._limit < low and high < self._limit:  # false for NaN too
            return short
        values = values.float() if diagonal is None else values.float().tril(diagonal)
        finite = values.isfinite()
        outside = finite & (values.abs() > self._limit)
        counts.nonfinite += int((~finite).sum())
        counts.out_of_range += int(outside.sum())
        return torch.where(outside | ~finite, values, short.float())


def residual_error(values: dict[str, Tensor]) -> float | None:
    """How far a layer is from `block output = hidden_in + attn_out + mlp_down_out`.

    Args:
        values: (rows, width) tensors of the layer's sites, unrounded; the block's own output is
            hidden_out, or `block_out` where hooks have changed it.

    Returns:
        The largest error of a token relative to the largest of its own values; None where sites are
        missing. A value that is NaN says nothing and is passed over; a sum that is infinite where
        its parts are not is an infinite error.
    """
    added = [values[site] for site in ("attn_out", "mlp_down_out") if site in values]
    after = values.get(BLOCK_OUT, values.get("hidden_out"))
    if "hidden_in" not in values or after is None or not added:
        return None
    after = after.float()
    rest = after - values["hidden_in"]
    for contribution in added:
        rest -= contribution
    return _relative(rest, [after, *added])


def change(values: dict[str, Tensor]) -> float:
    """How much hooks changed a block's output: the largest change, relative, of a token."""
    if BLOCK_OUT not in values:
        return 0.0
    own, after = values[BLOCK_OUT].float(), values["hidden_out"].float()
    return _relative(after - own, [own, after])


def _relative(errors: Tensor, values: list[Tensor]) -> float:
    """The largest error of a row relative to the row's largest value."""
    worst = _row_largest(errors)
    size = _row_largest(values[0])
    for more in values[1:]:
        size = torch.maximum(size, _row_largest(more))
    if not bool(torch.isfinite(worst).all() and torch.isfinite(size).all()):
        worst = _row_largest(errors.masked_fill(errors.isnan(), 0.0))
        finite = [value.float().masked_fill(~value.isfinite(), 0.0) for value in values]
        size = torch.stack([_row_largest(value) for value in finite]).amax(0)
    return float((worst / size.clamp_min(torch.finfo(torch.float32).tiny)).amax())


def _row_largest(values: Tensor) -> Tensor:
    """The largest absolute value of each row, float32; NaN where the row has one."""
    # A fifth of the time of a norm.
    return torch.maximum(values.amax(1), values.amin(1).neg_()).float()
