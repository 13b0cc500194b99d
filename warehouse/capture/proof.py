"""Whether prompts that were read together are what they are alone: by numbers, in every run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from warehouse.capture.batches import PlannedBatch, shard_of
from warehouse.capture.hooks import LayerTensors
from warehouse.capture.plan import Plan

#: Prompts that are read alone again before anything is known, at the least.
SAMPLE = 16


def limit(dtype: str) -> float:
    """How far apart a vector read together and the one read alone may be, as a share of it."""
    kind = getattr(torch, dtype)
    return 1e-5 if kind == torch.float32 else 16 * torch.finfo(kind).eps


class Proof:
    """Whether prompts read together are what they are alone: by numbers, for each shape of a batch.

    Trees of one shape branch differently: those that prompts are sampled from are spread over the
    shard, and none of a shape is written before the first of it was compared. Where a later one is
    wrong, so are those after it.

    Args:
        plan: the request and its model.
        batches: those of a shard.
        known: whether batches of some shapes are right, as the shards before it have shown.

    Attributes:
        errors: per layer, the largest ‖together − alone‖ / ‖alone‖ of a vector, of the shapes that
            are right.
        warnings: rows about those that are not.
    """

    def __init__(
        self,
        plan: Plan,
        batches: Sequence[PlannedBatch],
        known: Mapping[tuple[int, int], bool] | None = None,
    ):
        self._limit = limit(plan.loaded.dtype)
        together = [batch for batch in batches if len(batch.prompts) > 1]
        trees = [batch for batch in together if batch.tree]
        some = min(len(trees), SAMPLE)
        spread = [trees[n * len(trees) // some] for n in range(some)]
        self._right = dict(known or {})
        new = {batch.shape: batch for batch in together if batch.shape not in self._right}
        counts = [len(batch.prompts) for batch in spread or new.values()]
        enough = 1 if self._right and not spread else SAMPLE
        self._each = 1  # of each compared, so that all are enough, as far as there are any
        while self._each < enough and sum(min(n, self._each) for n in counts) < enough:
            self._each += 1
        spare = sum(min(n, self._each) for n in counts) - SAMPLE
        #: Prompts of the trees that are compared, by the number of a tree: no more than are enough.
        self._spread: dict[int, int] = {}
        for batch in spread:
            less = spare > 0 and len(batch.prompts) >= self._each > 1
            self._spread[batch.number] = self._each - less
            spare -= less
        self.errors: dict[int, float] = {}
        self.warnings: list[dict] = []

    @property
    def shapes(self) -> dict[tuple[int, int], bool]:
        """What is known of shapes, for the next shards; trees of one shape are not alike."""
        return {shape: right for shape, right in self._right.items() if shape[0] > 1}

    def asks(self, batch: PlannedBatch) -> bool:
        """Whether nothing is known of a batch's shape, or more is to be known of its trees."""
        right = self._right.get(batch.shape)
        return right is None or (right and batch.number in self._spread)

    def is_right(self, batch: PlannedBatch) -> bool:
        """Whether batches of this shape were shown to be right."""
        return self._right[batch.shape]

    def sample(self, batch: PlannedBatch) -> list[int]:
        """Which of a batch's prompts are read alone, spread from the first to the last."""
        count = len(batch.prompts)
        some = min(self._spread.get(batch.number, 1) if batch.tree else self._each, count)
        first = shard_of(str(batch.number), count) if batch.tree else 0
        places = ((count - 1) * n // max(1, some - 1) for n in range(some))
        return sorted({(first + place) % count for place in places})

    def holds(
        self,
        batch: PlannedBatch,
        together: list[LayerTensors],
        alone: list[tuple[int, list[LayerTensors]]],
        counts: list[int],
    ) -> bool:
        """Compare prompts of a batch with what they are alone.

        Args:
            batch: the batch.
            together: what its pass gave.
            alone: per sampled prompt, its place in the batch and what its own pass gave.
            counts: rows of each prompt of the batch.
        """
        errors: dict[int, float] = {}
        for place, own in alone:
            first = sum(counts[:place])
            for one, other in zip(together, own, strict=True):
                rows = slice(first, first + counts[place])
                pairs = [(one.sites[site][rows], other.sites[site]) for site in other.sites]
                pairs += [(one.means[site][place], other.means[site][0]) for site in other.means]
                if one.attention is not None and other.attention is not None:
                    width = other.attention.shape[-1]
                    pairs.append((one.attention[:, rows, :width], other.attention))
                error = max((_difference(*pair) for pair in pairs), default=0.0)
                errors[one.layer] = max(errors.get(one.layer, 0.0), error)
        right = all(error <= self._limit for error in errors.values())
        self._right[batch.shape] = right
        if right:
            for layer, error in errors.items():
                self.errors[layer] = max(self.errors.get(layer, 0.0), error)
        else:
            worst = max(errors, key=lambda layer: errors[layer])
            message = (
                f"{len(batch.prompts)} prompts of {batch.padded} tokens together "
                f"{'in a tree ' if batch.tree else ''}gave layer {worst} other numbers "
                f"than alone, by {errors[worst]:.1e} of a vector's length: read one by one"
            )
            self.warnings.append({"code": "batch", "message": message})
        return right


def _difference(rows: Tensor, alone: Tensor) -> float:
    """The largest ‖a − b‖ / ‖b‖ of a vector; infinite where only one of them is finite."""
    rows, alone = rows.float(), alone.float().to(rows.device)
    apart, size = (rows - alone).norm(dim=-1), alone.norm(dim=-1)
    ratio = torch.where(apart == 0, 0.0, apart / size)
    same = (rows == alone) | (rows.isnan() & alone.isnan())
    ratio = torch.where(same.all(-1), 0.0, ratio)
    return float(ratio.nan_to_num(nan=torch.inf).max()) if ratio.numel() else 0.0
