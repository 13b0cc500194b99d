"""Collects last-token states and writes them to the run's `states` file."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from warehouse import vocabulary
from warehouse.capture.rounding import Rounding, SiteStats
from warehouse.lake import lake
from warehouse.lake import schemas as parquet
from warehouse.lake.parquet import open_parquet

Key = tuple[int | None, str, int, str | None]


class StateFile:
    """The states of a run: filled while passes run, written state by state.

    A state is told by (prompt_id or None, state, state_index, label or None).

    Args:
        staged: the run being written.
        width: width of the residual stream.
        store_dtype: precision to round to, as in `TensorWriter`.
    """

    def __init__(self, staged: lake.StagedRun, width: int, store_dtype: str):
        self._path = staged.path("states", "part-0.parquet")
        self._schema = parquet.state_schema(width)
        self._round = Rounding(store_dtype)
        self._states: dict[Key, dict[tuple[int, str], Tensor]] = {}
        self._held: tuple[Key, dict[int, dict[str, Tensor]]] | None = None
        self._writer: Any = None

    def add(self, rows: dict[Key, int], layer: int, sites: dict[str, Tensor]) -> None:
        """Keep some tokens' vectors of a layer: for each state, a row of each site that states have."""
        for site in vocabulary.STATE_SITES:
            if site in sites:
                # copies: views would keep the whole pass
                vectors = sites[site][list(rows.values())].to("cpu", torch.float32)
                for key, vector in zip(rows, vectors, strict=True):
                    self._states.setdefault(key, {})[layer, site] = vector

    def hold(self, key: Key, layer: int, sites: dict[str, Tensor]) -> None:
        """Hold on to the vectors of a pass's last token, in place of those that were held for another key.

        Of the passes of a generation only the last one's state is written, and which is the last is
        known late.
        """
        if self._held is None or self._held[0] != key:
            self._held = key, {}
        self._held[1][layer] = sites

    def average(self, key: Key, of: Sequence[Key]) -> None:
        """Add a state that is the mean of others which are not written yet, taken before anything is rounded."""
        parts = [self._states[one] for one in of]
        self._states[key] = {
            at: torch.stack([part[at] for part in parts]).double().mean(0).float()
            for at in parts[0]
        }

    def vectors(self, key: Key) -> Tensor:
        """The (vectors, width) of a state that is not written yet, by layer and site."""
        return torch.stack([vector for _, vector in sorted(self._states[key].items(), key=_order)])

    def forget(self, key: Key) -> None:
        """Drop a state that is not written yet."""
        self._states.pop(key, None)

    def flush(self) -> None:
        """Write what has been collected."""
        if self._held is not None:
            (key, layers), self._held = self._held, None
            for layer, sites in layers.items():
                self.add({key: -1}, layer, sites)
        group = []
        for key, vectors in self._states.items():
            group += [
                (*key[:4], layer, site, vector)
                for (layer, site), vector in sorted(vectors.items(), key=_order)
            ]
        self._states = {}
        if not group:
            return
        if self._writer is None:
            self._writer = open_parquet(self._path, self._schema)
        stack = torch.stack([row[-1] for row in group])
        flat = pa.array(self._round(stack, SiteStats()).float().view(-1).numpy())
        columns = [
            pa.array(column, field.type)
            for column, field in zip(
                list(zip(*group, strict=True))[:-1], self._schema, strict=False
            )
        ]
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field("vector").type)
        table = pa.Table.from_arrays([*columns, vectors], schema=self._schema)
        self._writer.write_table(table, row_group_size=max(64, len({row[4] for row in group}) * 4))

    def close(self) -> None:
        """Write the rest and finish the file."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _order(item: tuple[tuple[int, str], Tensor]) -> tuple[int, int]:
    (layer, site), _ = item
    return layer, vocabulary.STATE_SITES.index(site)
