"""Reads the last-token states of an imported directory."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from warehouse.exchange.directory import Directory
from warehouse.lake.parquet import open_parquet
from warehouse.lake.schemas import state_schema
from warehouse.lake.staging import StagedRun
from warehouse.vocabulary import STATE_SITES

#: Bytes of vectors that are compressed together.
GROUP_BYTES = 1 << 19

#: What tells a state: prompt, kind, index and label.
State = tuple[int | None, str, int, str | None]

_STATE_KEY = re.compile(rf"layer_(\d{{1,4}})/({'|'.join(STATE_SITES)})")


class ImportedStates:
    """The states of the directory.

    Attributes:
        snapshots: rows of the table `snapshots`.
        references: rows of the table `reference_states`.
    """

    def __init__(self, source: Directory):
        self._source = source
        self._vectors: dict[State, tuple[Path, list[str]]] = {}
        snapshot = r"snapshot_(?P<message_index>\d+)_(?P<role>\w+)"
        self.snapshots = source.index("conversation_snapshots", snapshot)
        self.references = source.index("references", r"ref_(?P<label>.+)")
        for number, row in enumerate(self.snapshots):
            row["message_index"] = int(row.get("message_index", number))
            self._add((row.get("prompt_id") or 0, "snapshot", row["message_index"], None), row)
        for number, row in enumerate(self.references):
            row["ref_index"] = int(row.get("ref_index", number))
            self._add((None, "reference", row["ref_index"], str(row["label"])), row)
        for row in source.index("examples", r"example_(?P<state_index>\d+)_(?P<label>.+)"):
            self._add((None, "example", int(row["state_index"]), str(row["label"])), row)
        for row in source.index("states", "(?P<state>initial|final)"):
            index = int(row.get("state_index", 0))
            self._add((row.get("prompt_id") or 0, row["state"], index, None), row)
        if not any(state in ("initial", "final") for _, state, *_ in self._vectors):
            self._add_passes()

    def _add(self, state: State, row: dict) -> None:
        self._vectors[state] = row["path"], list(self._source.reader(row["path"]).specs)

    def _add_passes(self) -> None:
        """The last tokens of the first and the last pass of each prompt."""
        for prompt_id, passes in self._source.prompts().items():
            ends = [("initial", one) for one in passes if one.step == 0]
            ends += [("final", one) for one in passes[-1:] if one.step > 0]
            for state, one in ends:
                self._vectors[prompt_id, state, one.step, None] = one.path, list(one.keys.values())

    def write(self, staged: StagedRun) -> None:
        """Write the run's file of states; none where the directory has no site that states keep."""
        tables = (table for state in self._vectors if (table := self._table(state)) is not None)
        if (first := next(tables, None)) is not None:
            with open_parquet(staged.path("states", "part-0.parquet"), first.schema) as writer:
                for group in _grouped(chain([first], tables)):
                    writer.write_table(group)

    def _table(self, state: State) -> pa.Table | None:
        """The vectors of one state, by layer and site."""
        path, keys = self._vectors[state]
        places = sorted(
            (int(m[1]), STATE_SITES.index(m[2]), m[0]) for m in map(_STATE_KEY.fullmatch, keys) if m
        )
        if not places:
            return None
        vectors = np.stack([self._source.reader(path).vector(key) for *_, key in places])
        schema = state_schema(vectors.shape[1])
        columns = [[value] * len(places) for value in state]
        columns += [[layer for layer, *_ in places], [STATE_SITES[site] for _, site, _ in places]]
        arrays = [pa.array(v, f.type) for v, f in zip(columns, schema, strict=False)]
        flat = pa.array(vectors.reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type))
        return pa.table(arrays, schema=schema)


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of a few rows together in row groups of about `GROUP_BYTES`."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(some.nbytes for some in waiting) >= GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
