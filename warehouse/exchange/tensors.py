"""Tensors and states of a run as arrays: `Warehouse.tensor`, `activations` and `vector`."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from warehouse.catalog import runs
from warehouse.catalog.runs import Run, names, numbers
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lake.tensors import PassId, Source, blocks
from warehouse.vocabulary import OUTPUTS, STATE_SITES, STATES, Site, column_of, site_of

#: What is said of each token of a conversation.
_TOKEN = (
    dict.fromkeys(("step", "position", "token_id"), pa.int32())
    | {"token": pa.string(), "message_index": pa.int32(), "role": pa.string()}
    | dict.fromkeys(("is_template", "is_generated"), pa.bool_())
)
_INSPECT = "See: alab inspect RUN"
_STATES = """
    SELECT state_index, label, vector FROM states_of(?) WHERE site = ? AND layer = ? AND state = ?
    AND coalesce(prompt_id, ?) = ? ORDER BY state_index
"""

#: One layer, several, or none for a site that has no layers.
Layers = int | Sequence[int] | None
#: Positions of each pass that are kept: all of a conversation, few of a dataset's prompt.
Places = dict[PassId, list[int]]


@dataclass(frozen=True)
class Activations:
    """One site over a whole conversation, prefill and decode.

    Attributes:
        run_id: id of the run.
        prompt_id: 0-based conversation within the run.
        site: name of the site.
        layers: the layers, in the order of `values`; empty for embeddings and logits.
        values: float32, shaped (layers, tokens, width); (tokens, width) for embeddings and logits.
        tokens: an Arrow table with a row per token, in the order of `values`: step, position,
            token_id, token, message_index, role, is_template, is_generated.
    """

    run_id: str
    prompt_id: int
    site: str
    layers: tuple[int, ...]
    values: np.ndarray
    tokens: pa.Table

    def __repr__(self) -> str:
        prompt = f"{self.site} of {self.run_id}, prompt {self.prompt_id}"
        return f"Activations({prompt}: {self.values.shape})"

    def table(self) -> pa.Table:
        """The vectors in long form, to join with what SQL says of the tokens.

        Returns:
            An Arrow table with a row per layer and token: run_id, prompt_id, layer, what `tokens`
            has, and `vector`, which has the values of `values` without copying them.
        """
        layers: list[int | None] = list(self.layers) or [None]
        count, width = self.values.shape[-2:]
        rows = len(layers) * count
        flat = pa.array(self.values.reshape(-1))
        columns = {
            "run_id": pa.repeat(self.run_id, rows),
            "prompt_id": pa.repeat(pa.scalar(self.prompt_id, pa.int32()), rows),
            "layer": pa.array([layer for layer in layers for _ in range(count)], pa.int32()),
        }
        tokens = pa.concat_tables([self.tokens] * len(layers)).combine_chunks()
        columns |= dict(zip(tokens.column_names, tokens.columns, strict=True))
        return pa.table(columns | {"vector": pa.FixedSizeListArray.from_arrays(flat, width)})


def tensor(
    lake: Lake, db: duckdb.DuckDBPyConnection, name: str, site: str, layer: Layers, at: PassId
) -> np.ndarray:
    """One site of one forward pass; see `Warehouse.tensor`."""
    run, kind = _run(lake, db, name, site)
    values = []
    for _, source in _sources(run, kind, layer):
        _check_pass(source, at)
        heads = source.tensor(column_of(kind), at)
        values.append(heads if site == "attention" else heads[0])
    if layer is None or isinstance(layer, int) or site in OUTPUTS:
        return values[0]
    return np.stack(values)


def activations(
    lake: Lake, db: duckdb.DuckDBPyConnection, name: str, site: str, layers: Layers, prompt: int
) -> Activations:
    """One site of a whole conversation; see `Warehouse.activations`."""
    run, kind = _run(lake, db, name, site)
    if site == "attention":
        raise AlabError(
            "attention has as many keys as there are tokens at each pass, which is no one array",
            f"Ask for one pass: lab.tensor({name!r}, 'attention', layer=0, step=0)",
        )
    if layers is None and site not in OUTPUTS:
        layers = run.layers()
    values: list[np.ndarray] = []
    places: Places = {}
    sources = _sources(run, kind, [layers] if isinstance(layers, int) else layers)
    for _, source in sources:
        places = {at: source.positions(at) for at in sorted(source.span) if at[0] == prompt}
        if not places:
            there = ", ".join(map(str, sorted({p for p, _ in source.span})))
            raise AlabError(f"there is no prompt {prompt} in this run", f"There are: {there}")
        values.append(_conversation(source, column_of(kind), places))
    numbered = tuple(n for n, _ in sources if n is not None)
    stacked = np.stack(values) if numbered else values[0]
    return Activations(run.run_id, prompt, site, numbered, stacked, _tokens(run, prompt, places))


def _tokens(run: Run, prompt: int, places: Places) -> pa.Table:
    """What is said of each token of some passes."""
    rows = {row["position"]: row for row in run.rows("tokens") if row["prompt_id"] == prompt}
    placed = [
        rows.get(position, {}) | {"step": step, "position": position}
        for (_, step), positions in places.items()
        for position in positions
    ]
    return pa.Table.from_pylist(placed, pa.schema(_TOKEN))


def _conversation(source: Source, column: str, places: Places) -> np.ndarray:
    """The rows of some passes one after the other, (tokens, width)."""
    width = source.columns[column]
    assert width is not None  # attention, whose rows differ, is refused before
    ends = np.cumsum([len(positions) for positions in places.values()])
    place = dict(zip(places, [0, *ends.tolist()], strict=False))
    out = np.empty((int(ends[-1]), width), np.float32)
    for at, rows in source.read(column, set(places)):
        for block in blocks(rows, width):
            block = block.reshape(-1, width)
            out[place[at] : place[at] + len(block)] = block
            place[at] += len(block)
    return out


def _run(lake: Lake, db: duckdb.DuckDBPyConnection, name: str, site: str) -> tuple[Run, Site]:
    """A run and one of its sites, by their names."""
    run = Run(lake, runs.find_run(db, name), db)
    names(site, run.site_names())
    if (kind := site_of(site)) is None:
        raise AlabError(f"{site!r} is more than one site", "Ask for one after the other.")
    return run, kind


def _sources(run: Run, site: Site, layer: Layers) -> list[tuple[int | None, Source]]:
    """The files of a site, layer by layer in the order that was asked for."""
    numbered: list[int | None] = [None]
    if site.dataset != "outputs":
        if layer is None or (not isinstance(layer, int) and not len(layer)):
            hint = f"Name one: layer=0 to {run.layers()[-1]}"
            raise AlabError(f"each layer has its own {site.name}", hint)
        numbered = [layer] if isinstance(layer, int) else [int(n) for n in layer]
        for n in numbered:
            numbers(str(n), run.layers(), "layer")
    sources = []
    for n in numbered:
        source = Source(run.files.get((site.dataset, n), []))
        if not source.open or column_of(site) not in source.columns:
            raise AlabError(f"{site.name} was not captured in layer {n} of this run", _INSPECT)
        sources.append((n, source))
    return sources


def _check_pass(source: Source, at: PassId) -> None:
    if at not in source.span:
        there = [step for prompt, step in sorted(source.span) if prompt == at[0]]
        hint = f"Prompt {at[0]} has the steps {there[0]}-{there[-1]}" if there else _INSPECT
        raise AlabError(f"there is no step {at[1]} of prompt {at[0]} in this run", hint)


def vector(
    db: duckdb.DuckDBPyConnection,
    run: str,
    site: str,
    layer: int,
    state: str,
    label: str | None,
    message: int | None,
    example: int | None,
    prompt: int,
) -> np.ndarray:
    """One last-token state; see `Warehouse.vector`."""
    for value, known, what in ((site, STATE_SITES, "site"), (state, STATES, "state")):
        if value not in known:
            raise AlabError(f"states have no {what} {value!r}", f"There are: {', '.join(known)}")
    run_id = runs.find_run(db, run)
    rows = db.execute(_STATES, [run_id, site, layer, state, prompt, prompt]).fetchall()
    if not rows:
        only = "The one example of a label is its reference."
        what = f"{state} state of {site} in layer {layer}, prompt {prompt}"
        raise AlabError(f"this run has no {what}", only if state == "example" else _INSPECT)
    asked = {"reference": label, "snapshot": message, "example": example}.get(state)
    if state == "example" and label is not None:
        rows = [row for row in rows if row[1] == label]
    keys = [row[1] if state == "reference" else row[0] for row in rows]
    if state in ("reference", "snapshot", "example"):
        if asked not in keys:
            name = f"{state} {asked!r}" if asked is not None else f"{state} without a name"
            there = ", ".join(map(str, keys))
            raise AlabError(f"there is no {name} in this run", f"There are: {there}")
        rows = [row for row, key in zip(rows, keys, strict=True) if key == asked]
    return np.array(rows[-1][2], np.float32)
