"""Counts what imported arrays hold that is not finite, or outside the range of their precision, as a capture does."""

from math import inf
from typing import Any

import numpy as np

#: The largest value of each precision.
_LIMITS = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}

#: (layer or None, site).
Place = tuple[int | None, str]


class Counts:
    """What was seen in the values of an import.

    Args:
        store_dtype: the precision that the values are said to be in.
    """

    def __init__(self, store_dtype: str):
        self.store_dtype = store_dtype
        self._limit = _LIMITS.get(store_dtype, inf)
        self._seen: dict[Place, list[int]] = {}

    def add(self, layer: int | None, site: str, values: np.ndarray) -> None:
        """Count values of a site; rows of logits that are all NaN were not computed, and do not count."""
        seen = self._seen.setdefault((layer, site), [0, 0])
        largest = np.abs(values).max(initial=0.0)
        if largest <= self._limit and largest < inf:  # false for NaN too
            return
        finite = np.isfinite(values)
        if site == "logits":
            finite |= np.isnan(values).all(1, keepdims=True)
        seen[0] += int((~finite).sum())
        seen[1] += int((np.abs(values[np.isfinite(values)]) > self._limit).sum())

    def filled(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the table `sites` with the counts of what was imported."""
        return [
            row | dict(zip(("n_nonfinite", "n_out_of_range"), self._seen[place], strict=True))
            if (place := (row.get("layer"), row.get("site"))) in self._seen
            else row
            for row in rows
        ]

    def warnings(self, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A warning about values that are not finite, where the directory has none."""
        count = sum(nonfinite for nonfinite, _ in self._seen.values())
        if not count or any(row.get("code") == "nonfinite" for row in told):
            return []
        return [
            {
                "code": "nonfinite",
                "message": f"the imported arrays have {count} values that are NaN or infinite",
            }
        ]
