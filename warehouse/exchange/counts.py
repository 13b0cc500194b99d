"""Counts values of imported arrays that are not finite, or too large, as a capture does."""

from math import inf
from typing import Any

import numpy as np

#: The largest value of each precision.
_LIMITS = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}

#: (layer or None, site).
Place = tuple[int | None, str]


class Counts:
    """What there is in the values of an import, which are said to be in the precision given."""

    def __init__(self, store_dtype: str):
        self.store_dtype = store_dtype
        self._limit = _LIMITS.get(store_dtype, inf)
        self._counts: dict[Place, list[int]] = {}

    def add(self, layer: int | None, site: str, values: np.ndarray) -> None:
        """Count values of a site; rows of logits that are all NaN were not computed, and don't."""
        counts = self._counts.setdefault((layer, site), [0, 0])
        largest = np.abs(values).max(initial=0.0)
        if largest <= self._limit and largest < inf:  # false for NaN too
            return
        finite = np.isfinite(values)
        if site == "logits":
            finite |= np.isnan(values).all(1, keepdims=True)
        counts[0] += int((~finite).sum())
        counts[1] += int((np.abs(values[np.isfinite(values)]) > self._limit).sum())

    def filled(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the table `sites` with the counts of what was imported."""
        counts: dict[Any, dict[str, int]] = {
            place: {"n_nonfinite": nonfinite, "n_out_of_range": outside}
            for place, (nonfinite, outside) in self._counts.items()
        }
        return [row | counts.get((row.get("layer"), row.get("site")), {}) for row in rows]

    def warnings(self, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A warning about values that are not finite, where the directory has none."""
        count = sum(nonfinite for nonfinite, _ in self._counts.values())
        if not count or any(row.get("code") == "nonfinite" for row in listed):
            return []
        message = f"the imported arrays have {count} values that are NaN or infinite"
        return [{"code": "nonfinite", "message": message}]
