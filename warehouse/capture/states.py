"""Collects last-token states and writes them to the run's `states` file."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from warehouse.capture.rounding import Rounding, SiteStats
from warehouse.lake.parquet import open_parquet
from warehouse.lake.schemas import state_schema
from warehouse.lake.staging import Shard, StagedRun
from warehouse.vocabulary import STATE_SITES

Key = tuple[int | None, str, int, str | None]

#: Prompts whose states are row groups of their own.
PROMPT_GROUPS = 64
#: Vectors, and their values, of the states of later prompts that are written together: a file's
#: writer, and each of its readers, holds something of every row group.
GROUP_VECTORS, GROUP_VALUES = 1 << 12, 1 << 20

#: Prompts whose means over tokens are written together.
MEAN_ROWS = 512


class StateFile:
    """The states of a run: filled while passes run, written state by state.

    A state is told by (prompt_id or None, state, state_index, label or None).

    Args:
        staged: the run being written.
        width: width of the residual stream.
        store_dtype: precision to round to, as in `TensorWriter`.
        by_site: write thousands of prompts together, each site of a layer in row groups of its own,
            so that one is read without the others.
    """

    def __init__(
        self, staged: StagedRun | Shard, width: int, store_dtype: str, by_site: bool = False
    ):
        self._by_site = by_site
        self._path = staged.path("states", "part-0.parquet")
        self._schema = state_schema(width)
        self._group = min(GROUP_VECTORS, GROUP_VALUES // width)
        self._round = Rounding(store_dtype)
        self._states: dict[Key, dict[tuple[int, str], Tensor]] = {}
        self._latest: tuple[Key, dict[int, dict[str, Tensor]]] | None = None
        self._writer: Any = None
        self._writes = 0

    def add(self, places: dict[Key, int], layer: int, sites: dict[str, Tensor]) -> None:
        """Take some tokens' vectors of a layer, of each site that states have, from `places`."""
        for site in STATE_SITES:
            if site in sites:
                # copies: views would keep the whole pass
                vectors = sites[site][list(places.values())].to("cpu", torch.float32)
                for key, vector in zip(places, vectors, strict=True):
                    self._states.setdefault(key, {})[layer, site] = vector

    def replace(self, key: Key, layer: int, sites: dict[str, Tensor]) -> None:
        """Take the vectors of a pass's last token, in place of those of another key.

        Of the passes of a generation only the last one's state is written, and which is the last is
        known late.
        """
        if self._latest is None or self._latest[0] != key:
            self._latest = key, {}
        self._latest[1][layer] = sites

    def average(self, key: Key, of: Sequence[Key]) -> None:
        """Add a state that is the mean of others, not written yet, before anything is rounded."""
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
        """A prompt has ended: write its states, or those of many prompts together."""
        if self._latest is not None:
            (key, layers), self._latest = self._latest, None
            for layer, sites in layers.items():
                self.add({key: -1}, layer, sites)
        count = sum(map(len, self._states.values()))
        if self._by_site:
            if len(self._states) >= MEAN_ROWS:
                self._write()
        elif count and (self._writes < PROMPT_GROUPS or count >= self._group):
            self._write()

    def close(self) -> None:
        """Write the rest and finish the file."""
        self.flush()
        if self._states:
            self._write()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self) -> None:
        group = [
            (*key, layer, site, vector)
            for key, vectors in self._states.items()
            for (layer, site), vector in sorted(vectors.items(), key=_order)
        ]
        self._states = {}
        rows = max(64, len({row[4] for row in group}) * 4)
        if self._by_site:
            group.sort(key=lambda row: (row[4], STATE_SITES.index(row[5])))
            rows = len({row[:4] for row in group})
        elif self._writes >= PROMPT_GROUPS:
            rows = len(group)
        if self._writer is None:
            self._writer = open_parquet(self._path, self._schema)
        stack = torch.stack([row[-1] for row in group])
        flat = pa.array(self._round(stack, SiteStats()).float().view(-1).numpy())
        scalars = zip(list(zip(*group, strict=True))[:-1], self._schema, strict=False)
        columns = [pa.array(column, field.type) for column, field in scalars]
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field("vector").type)
        table = pa.Table.from_arrays([*columns, vectors], schema=self._schema)
        self._writer.write_table(table, row_group_size=rows)
        self._writes += 1


def _order(item: tuple[tuple[int, str], Tensor]) -> tuple[int, int]:
    (layer, site), _ = item
    return layer, STATE_SITES.index(site)
