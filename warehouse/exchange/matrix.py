"""A vector for each prompt of a run, as one matrix with its labels: what `Warehouse.matrix` gives.

It reads the files of one layer, and of these one column, without a row of Python.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa

from warehouse.catalog import runs
from warehouse.catalog.runs import Run, names, numbers
from warehouse.errors import AlabError, first_line
from warehouse.lake import store
from warehouse.lake.lake import Lake
from warehouse.lake.vectors import VectorFile
from warehouse.vocabulary import SITES, STATE_SITES, column_of, site_of

if TYPE_CHECKING:
    from warehouse.lake.objects import ObjectFile

#: Bytes of vectors that are in memory at once while batches are made of them.
WINDOW = 1 << 28
#: Bytes of vectors from which on several threads unpack them sooner than one.
SEVERAL = 1 << 21
#: What means are called among the selectors: they are states, and stand at no position.
MEAN = "mean"

_KEPT = (
    "SELECT prompt_id, position FROM positions WHERE run_id = ? AND selector = ? "
    "ORDER BY prompt_id, position"
)
_PLACES = "SELECT prompt_id, position FROM _positions_of(?, ?) ORDER BY prompt_id, position"
_SELECTORS = """
SELECT DISTINCT selector FROM positions WHERE run_id = $run
UNION SELECT unnest(['all', 'last']) WHERE NOT _has('labels', $run)
UNION SELECT 'mean' FROM states_of($run) WHERE state = 'mean'
ORDER BY 1
"""

#: Vectors, float32 (rows, width), and a table that says what each row is of.
Matrix = tuple[np.ndarray, pa.Table]


@dataclass(frozen=True)
class _Part:
    """Some rows of a row group: which they are, and which rows of the matrix they become."""

    file: VectorFile
    group: int
    rows: np.ndarray
    places: np.ndarray


@dataclass
class Vectors:
    """The vectors of one layer and site that a selector keeps, by prompt and position.

    Attributes:
        run: the run.
        prompts: `prompt_id` of each row, ascending.
        positions: 0-based place of each row's token, ascending within a prompt; None for means.
        parts: where the rows are.
        width: width of the vectors.
    """

    run: Run
    prompts: np.ndarray
    positions: np.ndarray | None
    parts: list[_Part]
    width: int

    def __len__(self) -> int:
        return len(self.prompts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some consecutive rows, float32 (stop − start, width).

        Raises:
            AlabError: a file is damaged or gone.
        """
        out = np.empty((stop - start, self.width), np.float32)
        parts = [part for part in self.parts if _overlaps(part.places, start, stop)]
        threads = min(4, os.cpu_count() or 1, len(parts))
        try:
            if threads < 2 or out.nbytes < SEVERAL:
                for part in parts:
                    _copy(part, out, start)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(lambda part: _copy(part, out, start), parts))
        except (OSError, ValueError) as error:
            raise AlabError(
                f"tensors of {self.run.run_id} cannot be read: {first_line(error)}",
                "What is wrong: alab check",
            ) from error
        return out

    @cached_property
    def labels(self) -> pa.Table:
        """What each row is of: prompt_id, position, and the columns of the dataset.

        A dataset's own column `position` keeps its name, and ours is `token_position` then (and so
        on, where it has that too).
        """
        rows = self._dataset_rows()
        columns = {"prompt_id": pa.array(self.prompts, pa.int32())}
        if self.positions is not None:
            name = "position"
            while name in rows.column_names:
                name = f"token_{name}"
            columns[name] = pa.array(self.positions, pa.int32())
        at = rows.column("prompt_id").to_numpy()
        order = np.argsort(at, kind="stable")
        found = np.searchsorted(at[order], self.prompts)
        if len(at) and not np.array_equal(at[order][np.minimum(found, len(at) - 1)], self.prompts):
            raise AlabError(
                f"rows of the dataset of {self.run.run_id} are gone", "What is wrong: alab check"
            )
        own = rows.drop_columns(["run_id", "prompt_id"])
        if own.num_columns:
            own = own.take(pa.array(order[found]))
        return pa.table([*columns.values(), *own.columns], names=[*columns, *own.column_names])

    def _dataset_rows(self) -> pa.Table:
        """The run's rows in `labels`; of a conversation just which there are."""
        files = self.run.files.get(("labels", None), [])
        if files:
            return pa.concat_tables([store.parquet(path).read(use_threads=False) for path in files])
        prompts = pa.array(np.unique(self.prompts), pa.int32())
        return pa.table({"run_id": pa.repeat(self.run.run_id, len(prompts)), "prompt_id": prompts})


def matrix(
    lake: Lake, db: duckdb.DuckDBPyConnection, run: str, site: str, layer: int, selector: str
) -> Matrix:
    """All vectors of a run's layer and site; see `Warehouse.matrix`."""
    vectors = find_vectors(lake, db, run, site, layer, selector)
    return vectors.read(0, len(vectors)), vectors.labels


def batches(
    lake: Lake,
    db: duckdb.DuckDBPyConnection,
    run: str,
    site: str,
    layer: int,
    size: int,
    selector: str,
) -> Iterator[Matrix]:
    """The same some rows at a time; see `Warehouse.batches`."""
    if size < 1:
        raise AlabError(f"a batch of {size} rows has none", "Name at least 1: size=256")
    return _batches(find_vectors(lake, db, run, site, layer, selector), size)


def _batches(vectors: Vectors, size: int) -> Iterator[Matrix]:
    """Row groups hold prompts in any order, so many batches are read at once."""
    window = size * max(1, WINDOW // (4 * vectors.width * size))
    for start in range(0, len(vectors), window):
        rows = vectors.read(start, min(start + window, len(vectors)))
        for first in range(0, len(rows), size):
            yield rows[first : first + size], vectors.labels.slice(start + first, size)


def find_vectors(
    lake: Lake, db: duckdb.DuckDBPyConnection, run: str, site: str, layer: int, selector: str
) -> Vectors:
    """Which vectors there are and where.

    Raises:
        AlabError: no such run, site, layer or selector; the message names those there are.
    """
    found = Run(lake, runs.find_run(db, run), db)
    read = _means if selector == MEAN else _selected
    try:
        vectors, error = read(found, site, layer, selector), None
    except AlabError as missing:
        vectors, error = None, missing
    if vectors is not None and len(vectors):
        return vectors
    known = [row[0] for row in db.execute(_SELECTORS, {"run": found.run_id}).fetchall()]
    there = f"There are: {', '.join(known) or 'none'}"
    if selector not in known:
        raise AlabError(f"there is no selector {selector!r} in this run", there)
    raise error or AlabError(f"{selector!r} keeps nothing of {site} in layer {layer}", there)


def _selected(run: Run, site: str, layer: int, selector: str) -> Vectors:
    known = site_of(site)
    files = []
    if known and known.dataset == "activations":
        files = _open(run.files.get((known.dataset, layer), []), column_of(known))
    width = max((file.width for file in files), default=0)
    if not width:
        raise _not_captured(run, site, layer)
    prompts, positions = _places(run, selector)
    keys = _key(prompts, positions)
    parts = []
    for file in files:
        table = file.parquet.read(columns=["prompt_id", "position"], use_threads=False)
        here = _key(*(column.to_numpy().astype(np.int64) for column in table.columns))
        ends = np.cumsum([file.rows(group) for group in file.groups])
        for group, rows in enumerate(np.split(here, ends[:-1])):
            parts.append(_part(file, group, rows, np.arange(len(rows)), keys))
    return _whole(Vectors(run, prompts, positions, parts, width))


def _not_captured(run: Run, site: str, layer: int) -> AlabError:
    """Why a run has nothing of a site and layer; such an error, or one that is raised."""
    numbers(str(layer), run.layers(), "layer")
    names(site, [name for name in run.site_names() if name in SITES or name == "mlp_act"])
    return AlabError(
        f"{site} was not captured in layer {layer} of this run", "See: alab inspect RUN"
    )


def _places(run: Run, selector: str) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and positions that a selector keeps, in their order."""
    found = run.db.execute(_KEPT, [run.run_id, selector]).fetchnumpy()
    if not len(found["prompt_id"]):  # a conversation, perhaps
        found = run.db.execute(_PLACES, [run.run_id, selector]).fetchnumpy()
    prompts, positions = (np.asarray(found[key], np.int64) for key in ("prompt_id", "position"))
    return prompts, positions


def _means(run: Run, site: str, layer: int, state: str) -> Vectors:
    """The means are states, in long form: of a row group only the rows of this layer and site."""
    # What layer 0 reads has a mean whatever the layers that are kept.
    known = {*run.layers(), *([0] if site == "hidden_in" else [])}
    numbers(str(layer), sorted(known), "layer")
    names(site, list(STATE_SITES))
    wanted = {"state": state, "layer": layer, "site": site}
    found = []
    for file in _open(run.files.get(("states", None), []), "vector"):
        for group in file.groups:
            if all(file.holds(group, column, value) for column, value in wanted.items()):
                table = file.parquet.read_row_group(group, columns=["prompt_id", *wanted])
                is_mean = np.ones(len(table), bool)
                for column, value in wanted.items():
                    is_mean &= table[column].to_numpy() == value
                if is_mean.any():
                    prompts = table["prompt_id"].to_numpy()[is_mean].astype(np.int64)
                    found.append((file, group, prompts, np.flatnonzero(is_mean)))
    every = [prompts for _, _, prompts, _ in found]
    keys = np.sort(np.concatenate(every)) if every else np.empty(0, np.int64)
    parts = [_part(*one, keys) for one in found]
    width = max((part.file.width for part in parts), default=0)
    return _whole(Vectors(run, keys, None, parts, width))


def _open(paths: "Sequence[Path | ObjectFile]", column: str) -> list[VectorFile]:
    try:
        return [VectorFile(path, column) for path in paths]
    except (OSError, ValueError) as error:
        raise AlabError(
            f"a file of the run cannot be read: {first_line(error)}", "What is wrong: alab check"
        ) from error


def _key(prompts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Prompt and position as one number, in their order."""
    return (prompts << 32) | positions


def _part(
    file: VectorFile, group: int, here: np.ndarray, rows: np.ndarray, keys: np.ndarray
) -> _Part:
    """The rows of a group whose keys are asked for, and their places among the sorted ones."""
    places = np.searchsorted(keys, here)
    asked = places < len(keys)
    asked[asked] = keys[places[asked]] == here[asked]
    return _Part(file, group, rows[asked], places[asked])


def _whole(vectors: Vectors) -> Vectors:
    """Refuse vectors that are not there, whose rows would be whatever was in memory."""
    filled = np.zeros(len(vectors), bool)
    for part in vectors.parts:
        filled[part.places] = True
    if missing := int((~filled).sum()):
        raise AlabError(
            f"{missing} of {len(vectors)} vectors of {vectors.run.run_id} are not in its files",
            "What is wrong: alab check",
        )
    return vectors


def _overlaps(places: np.ndarray, start: int, stop: int) -> bool:
    return bool(len(places)) and places.min() < stop and places.max() >= start


def _copy(part: _Part, out: np.ndarray, start: int) -> None:
    """Put those rows of a part into the matrix that are from row `start` on and fit in it."""
    fits = (part.places >= start) & (part.places < start + len(out))
    rows, places = part.rows[fits], part.places[fits] - start
    count = part.file.rows(part.group)
    if len(rows) == count and places[-1] - places[0] == count - 1 and np.all(np.diff(places) == 1):
        part.file.read(part.group, out[places[0] : places[0] + count])
    else:
        vectors = part.file.read(part.group)
        out[places] = vectors if len(rows) == count else vectors[rows]
