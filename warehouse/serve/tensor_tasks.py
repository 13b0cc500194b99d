"""What a worker does for the pages of tensors and attention: tiles, and what they are drawn with.

A tensor is one site of one layer in one pass, or embeddings or logits. `attended` is attention,
each weight times the length of the value that it weighs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from warehouse.catalog.runs import Run, find_run, names, numbers
from warehouse.errors import AlabError, NotThereError, first_line
from warehouse.lake.windows import STATISTICS, Window, limits, open_window, smaller
from warehouse.report import page
from warehouse.serve.tasks import FORMS, Desk, query_text
from warehouse.vocabulary import Site, column_of, site_of

#: Values of a tile along each side, and of one that is written as a table, at the most.
SIDE, TABLE = 512, 1 << 20
#: Values that are in memory at once while a tile is made smaller.
BAND = 1 << 22
#: Attention weights times the lengths of values.
ATTENDED = "attended"


@dataclass(frozen=True)
class Tensor:
    """One site of one layer and pass.

    Attributes:
        window: its matrix.
        heads: heads that are shown one by one; 1 where there are none.
        share: heads with rows of their own that share one head's `lengths`.
        lengths: (key-value heads, keys) what attention weights are multiplied with, or None.
    """

    window: Window
    heads: int
    share: int = 1
    lengths: np.ndarray | None = None

    @property
    def columns(self) -> int:
        """Columns of a head."""
        return self.window.width // (1 if self.window.heads > 1 else self.heads)

    def rows(self, start: int, stop: int, head: int, columns: slice = slice(None)) -> np.ndarray:
        """Some rows and columns of a head."""
        first, last, _ = columns.indices(self.columns)
        if self.window.heads == 1:
            before = head * self.columns
            return self.window.rows(start, stop, 0, slice(before + first, before + last))
        values = self.window.rows(start, stop, head, slice(first, last))
        return (
            values if self.lengths is None else values * self.lengths[head // self.share, columns]
        )

    def parts(self) -> Iterator[np.ndarray]:
        """All values of every head, some at a time."""
        if self.lengths is None:
            yield from self.window.parts()
            return
        for head in range(self.heads):
            for start, stop in bands(0, len(self.window), self.columns, 1):
                yield self.rows(start, stop, head).reshape(-1)


def bands(start: int, stop: int, width: int, step: int) -> Iterator[tuple[int, int]]:
    """Rows in bands of whole blocks of `step` rows, which fit in memory."""
    band = max(1, BAND // (width * step)) * step
    for first in range(start, stop, band):
        yield first, min(first + band, stop)


def open_tensor(
    desk: Desk, run: str, site: str, layer: int | None, prompt: int, step: int
) -> Tensor:
    """A tensor by what its address says.

    Raises:
        AlabError: no such run, site, layer, step or prompt; or a file is damaged.
    """
    found = Run(desk.lake, find_run(desk.db, run), desk.db)
    if site == ATTENDED:
        names("v", found.site_names())
    kind = _site(found, "attention" if site == ATTENDED else site)
    if kind.dataset == "outputs":
        layer = None
    else:
        numbers(str(layer), found.layers(), "layer")
    try:
        parts = found.files.get((kind.dataset, layer), [])
        paths = tuple(part for part in parts if isinstance(part, Path))  # pages are of local lakes
        window = open_window(paths, column_of(kind), (prompt, step))
    except KeyError:
        raise NotThereError(
            f"no {site} was kept of step {step} of prompt {prompt}"
            + ("" if layer is None else f" in layer {layer}"),
            "See: alab inspect RUN",
        ) from None
    (facts,) = found.rows("runs")
    if site != ATTENDED:
        return Tensor(window, _heads(facts, kind, window))
    lengths = _lengths(desk, found.run_id, layer, prompt, window.width)
    return Tensor(window, window.heads, window.heads // len(lengths), lengths)


def _site(run: Run, site: str) -> Site:
    names(site, run.site_names())
    if (kind := site_of(site)) is None:
        raise AlabError(f"{site!r} is more than one site", "Ask for one after the other.")
    return kind


def _heads(facts: dict[str, Any], kind: Site, window: Window) -> int:
    """Heads that a tensor has, in rows of their own or in equal parts of its columns."""
    count = dict.fromkeys("q", facts["num_heads"]) | dict.fromkeys("kv", facts["num_kv_heads"])
    heads = window.heads if kind.name == "attention" else count.get(kind.name) or 1
    return heads if kind.name == "attention" or window.width % heads == 0 else 1


def _lengths(desk: Desk, run: str, layer: int | None, prompt: int, keys: int) -> np.ndarray:
    """Length of the value of each key-value head and key."""
    values = {"run": run, "layer": layer, "prompt": prompt}
    rows = desk.ask(query_text("value_lengths"), values)
    head, position, length = (rows[name].to_numpy() for name in ("head", "position", "length"))
    lengths = np.full((int(head.max(initial=0)) + 1, keys), np.nan, np.float32)
    there = position < keys
    lengths[head[there], position[there]] = length[there]
    if np.isnan(lengths).any():
        raise NotThereError("the values of some tokens were not captured", "See: alab inspect RUN")
    return lengths


def _reading(work: Callable[..., bytes]) -> Callable[..., bytes]:
    """A task whose files may be damaged: its reader says which."""

    def reading(desk: Desk, run: str, **arguments: Any) -> bytes:
        try:
            return work(desk, run=run, **arguments)
        except (OSError, ValueError, IndexError) as error:
            told = f"tensors of {run} cannot be read: {first_line(error)}"
            raise AlabError(told, "What is wrong: alab check") from error

    return reading


@_reading
def tensor(desk: Desk, run: str, site: str, layer: int | None, prompt: int, step: int) -> bytes:
    """What a tensor is drawn with, and its rows: position and token of each.

    Returns:
        JSON as figures take it, with `heads`, `height`, `width`, the ends of its values over all
        heads, for attention 0 to 1, and `tokens` of the whole sequence.
    """
    own = open_tensor(desk, run, site, layer, prompt, step)
    text = query_text(_query(site))
    named = {"run": find_run(desk.db, run), "site": site, "layer": layer}
    named |= {"prompt": prompt, "step": step}
    tokens = desk.ask(query_text("sequence"), {name: named[name] for name in ("run", "prompt")})
    texts = {
        position: page.visible(token or "")
        for position, token in zip(*(column.to_pylist() for column in tokens.columns), strict=True)
    }
    ends = {"low": 0.0, "high": 1.0, "inner": 1.0, "nonfinite": 0}
    positions = own.window.positions
    answer = {
        "rows": len(positions),
        "columns": {"position": positions, "token": [texts.get(at, "") for at in positions]},
        "heads": own.heads,
        "height": len(positions),
        "width": own.columns,
        "is_keyed": own.window.heads > 1,
        "tokens": [texts.get(at, "") for at in range(max(positions, default=-1) + 1)],
        "ends": ends if site == "attention" else limits(own.parts()),
        "query": text,
        "values": {name: value for name, value in named.items() if f"${name}" in text},
    }
    return orjson.dumps(answer)


def _query(site: str) -> str:
    """The query that gives the same values."""
    own = {"attention": "tensor_attention", ATTENDED: "tensor_attended"}
    kind = site_of(site)
    return own.get(site) or ("tensor_outputs" if kind and kind.dataset == "outputs" else "tensor")


@_reading
def tile(
    desk: Desk,
    run: str,
    site: str,
    layer: int | None,
    prompt: int,
    step: int,
    head: int,
    row: int,
    column: int,
    rows: int,
    columns: int,
    down: int,
    across: int,
    statistic: str,
    form: str,
) -> bytes:
    """A rectangle of a tensor, made smaller.

    `run` to `head` say of which matrix; the tile begins at `row` and `column` and has `rows` by
    `columns` values, fewer at the tensor's end, each of which says `statistic` of `down` by
    `across` of the matrix.

    Returns:
        As `form` says: `binary`, float32, little-endian, row by row; or `json`, `csv` or `parquet`,
        a table with a column for each of the tile.
    """
    own = open_tensor(desk, run, site, layer, prompt, step)
    if statistic not in STATISTICS:
        raise AlabError(
            f"there is no statistic {statistic!r}", f"There are: {', '.join(STATISTICS)}"
        )
    _within("head", head, own.heads)
    _within("row", row, len(own.window))
    _within("column", column, own.columns)
    size = SIDE if form == "binary" else TABLE
    for name, value in (("rows", rows), ("columns", columns)):
        _within(name, value - 1, size, first=1)
    for name, value in (("down", down), ("across", across)):
        _within(name, value - 1, 1 << 24, first=1)
    stop = min(row + rows * down, len(own.window))
    cut = slice(column, column + columns * across)
    parts = [
        smaller(own.rows(*band, head, cut), down, across, statistic)
        for band in bands(row, stop, own.window.width, down)
    ]
    values = np.concatenate(parts)
    if form == "binary":
        return np.ascontiguousarray(values, "<f4").tobytes()
    return FORMS[form](_table(own, values, row, column, down, across), {})


def _within(name: str, value: int, size: int, first: int = 0) -> None:
    if not 0 <= value < size:
        raise AlabError(f"{name} is {value + first}", f"It goes from {first} to {size - 1 + first}")


def _table(
    own: Tensor, values: np.ndarray, row: int, column: int, down: int, across: int
) -> pa.Table:
    """A tile with the position of each row, and columns by the dimensions that they stand for."""
    if values.size > TABLE:
        raise AlabError(
            f"{values.size:,} values are too many for a table",
            "Zoom in, or take them with Python: lab.tensor(…)",
        )
    positions = pa.array(own.window.positions[row::down][: len(values)], pa.int32())
    ends = [(at, min(at + across, own.columns)) for at in range(column, own.columns, across)]
    named = [f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in ends[: values.shape[1]]]
    return pa.table([positions, *map(pa.array, values.T.copy())], names=["position", *named])


#: What a request may ask for, beside `tasks.TASKS`.
TASKS: dict[str, Callable[..., bytes]] = {"tensor": tensor, "tile": tile}
