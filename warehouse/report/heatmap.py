"""Draws tensors as pictures: one PNG per layer and forward pass (`alab heatmap`).

A picture has a row per token and a column per dimension; attention has a column per key token.
Without axes a value is one pixel, written as a palette image, which takes about as long as reading
the values.
"""

import difflib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from warehouse.catalog.runs import Run, Selection, names, numbers, open_run, sources
from warehouse.errors import AlabError
from warehouse.extras import needing
from warehouse.lake.lake import Lake
from warehouse.lake.tensors import PassId

#: Colour of NaN and infinity, which have no place on a scale.
_BAD = (128, 128, 128)
_COLOURS = 255


@dataclass
class Picture:
    """The values of one picture.

    Attributes:
        layer: decoder block; None for embeddings and logits.
        at: prompt and step.
        head: attention head; None where heads are not told apart.
        first: position of the first row's token.
        values: (tokens, columns) float32.
    """

    layer: int | None
    at: PassId
    head: int | None
    first: int
    values: np.ndarray

    @property
    def name(self) -> str:
        """Path of the file below the source's folder."""
        prompt_id, step = self.at
        parts = [] if self.layer is None else [f"layer_{self.layer:02d}"]
        parts += [f"step_{step:03d}"] + ([] if self.head is None else [f"head_{self.head:02d}"])
        return (f"prompt_{prompt_id:03d}/" if prompt_id else "") + "_".join(parts) + ".png"


def heatmaps(
    lake: Lake,
    name: str,
    *,
    source: str = "attention",
    layers: str | None = None,
    steps: str | None = None,
    per_head: bool = False,
    normalize: str = "per_image",
    reduce: str = "signed",
    cmap: str = "viridis",
    axes: bool = False,
    out: Path | None = None,
) -> list[Path]:
    """Draw one tensor of a run.

    Args:
        lake: the warehouse's lake.
        name: a run id, a unique prefix of one, or `latest`.
        source: a site, or attention, embeddings, logits.
        layers: the layers to draw, such as `0-3,7`; None is all.
        steps: the steps to draw; None is all.
        per_head: a picture for each head, of attention, q, k or v; else attention is averaged over
            its heads.
        normalize: what the ends of the colormap stand for. `per_image`: the smallest and largest
            value of each picture; `signed`: minus and plus the largest absolute value of each
            picture, so that the middle is 0; `global`: the smallest and largest value over all
            pictures; `none`: −1 and 1, or 0 and 1 for attention and absolute values.
        reduce: `signed` draws values as they are, `abs` their absolute values.
        cmap: any colormap of matplotlib.
        axes: draw axes, token labels and a colour bar.
        out: directory that gets `<source>/layer_NN_step_MMM.png`; None is `heatmaps`.

    Returns:
        The files.

    Raises:
        AlabError: no such run, source, layer, step or colormap, or a source without heads.
    """
    colours = colormap(cmap)
    with open_run(lake, name) as run:
        chosen = Selection(
            names(source, run.site_names()),
            numbers(layers, run.layers(), "layer"),
            numbers(steps, run.steps(), "step"),
        )
        heads = _heads(run, source) if per_head else 0
        tokens = _tokens(run) if axes else {}
        pictures = partial(_pictures, run, chosen, heads, absolute=reduce == "abs")
        positive = source == "attention" or reduce == "abs"
        shared = _shared_ends(normalize, pictures, positive)
        folder, files = Path(out or "heatmaps") / source, []
        for picture in pictures():
            low, high = shared or limits(picture.values)
            if normalize == "signed":
                low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
            path = folder / picture.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if axes:
                _draw(path, picture, source, tokens.get(picture.at[0], {}), (low, high), cmap)
            else:
                write_png(path, picture.values, low, high, colours)
            files.append(path)
    return files


def _shared_ends(
    normalize: str, pictures: Callable[[], Iterator[Picture]], positive: bool
) -> tuple[float, float] | None:
    """The ends of the colormap that all pictures share; None where each has its own."""
    if normalize == "none":
        return (0.0 if positive else -1.0), 1.0
    if normalize != "global":
        return None
    ends = [limits(picture.values) for picture in pictures()]
    return min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=1.0)


def colormap(name: str) -> np.ndarray:
    """The (255, 3) colours of a matplotlib colormap, as bytes.

    Raises:
        AlabError: there is no such colormap, or matplotlib is not installed.
    """
    with needing("heatmap", "alab heatmap"):
        import PIL  # noqa: F401  what `write_png` needs is missed before anything is drawn
        from matplotlib import colormaps
    if name not in colormaps:
        close = difflib.get_close_matches(name, list(colormaps), n=3, cutoff=0.5)
        some = ", ".join(close or ("viridis", "magma", "gray", "coolwarm", "RdBu"))
        raise AlabError(
            f"there is no colormap {name!r}", f"Among the {len(colormaps)} of matplotlib: {some}"
        )
    return colormaps[name](np.linspace(0, 1, _COLOURS), bytes=True)[:, :3]


def limits(values: np.ndarray) -> tuple[float, float]:
    """The smallest and largest finite value; (0, 0) where there is none."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return low, high


def write_png(path: Path, values: np.ndarray, low: float, high: float, colours: np.ndarray) -> None:
    """Write (rows, columns) values as a palette image, a pixel for each; NaN and infinity are grey.

    `low` and what is smaller gets the first of the `colours`, (255, 3) bytes, `high` and what is
    larger the last; where both are equal, everything is the middle.
    """
    from PIL import Image

    if high > low:
        scaled = (values - np.float32(low)) * np.float32((_COLOURS - 1) / (high - low))
        np.clip(np.rint(scaled, out=scaled), 0, _COLOURS - 1, out=scaled)
    else:
        scaled = np.full(values.shape, _COLOURS // 2, np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        scaled[~finite] = _COLOURS
    image = Image.fromarray(scaled.astype(np.uint8))
    image.putpalette(np.vstack([colours, [_BAD]]).astype(np.uint8).tobytes())
    # There are runs of a colour and nothing else: looking for more took four times as long.
    image.save(path, "PNG", compress_level=1, compress_type=zlib.Z_RLE)


def _heads(run: Run, source: str) -> int:
    (row,) = run.rows("runs")
    count = dict.fromkeys(("attention", "q"), row["num_heads"])
    count |= dict.fromkeys(("k", "v"), row["num_kv_heads"])
    if source not in count:
        raise AlabError(f"{source} has no heads", "These have: attention, q, k, v")
    return count[source] or 1


def _tokens(run: Run) -> dict[int, dict[int, str]]:
    """Text of each token by prompt and position."""
    texts: dict[int, dict[int, str]] = {}
    for row in run.rows("tokens"):
        texts.setdefault(row["prompt_id"], {})[row["position"]] = row["token"]
    return texts


def _pictures(run: Run, chosen: Selection, heads: int, absolute: bool) -> Iterator[Picture]:
    """The pictures of a site, layer by layer; `heads` is 0 where they are not told apart."""
    for _, layer, source in sources(run, chosen):
        for column in filter(chosen.site, source.columns):
            for at in (at for at in source.span if chosen.step(at[1])):
                values, first = source.tensor(column, at), source.span[at][0]
                if heads and column != "weights":
                    values = values[0].reshape(values.shape[1], heads, -1).swapaxes(0, 1)
                for head, part in enumerate(values) if heads else [(None, values.mean(0))]:
                    yield Picture(layer, at, head, first, np.abs(part) if absolute else part)


def _draw(
    path: Path,
    picture: Picture,
    source: str,
    tokens: dict[int, str],
    scale: tuple[float, float],
    cmap: str,
) -> None:
    """Draw a picture with axes, token labels and a colour bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows, columns = picture.values.shape
    keys = source == "attention"
    figure = Figure(figsize=(11, min(12, max(3, 0.16 * rows + 1.5))), layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    norm = Normalize(*scale)
    image = plot.imshow(
        picture.values, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest"
    )
    figure.colorbar(image, ax=plot, aspect=40, pad=0.02)
    _label(plot.yaxis, picture.first, rows, tokens, 105)
    plot.set_ylabel("token")
    plot.set_xlabel("key token" if keys else "dimension")
    if keys:
        _label(plot.xaxis, 0, columns, tokens, 105)
        plot.tick_params(axis="x", labelrotation=90)
    where = [] if picture.layer is None else [f"layer {picture.layer}"]
    where += [f"step {picture.at[1]}"] + ([] if picture.head is None else [f"head {picture.head}"])
    plot.set_title(f"{source}, {', '.join(where)}")
    figure.savefig(path, dpi=110)


def _label(axis: Any, first: int, count: int, tokens: dict[int, str], most: int) -> None:
    """Label an axis with tokens, all of them or every n-th where there are many."""
    places = range(0, count, -(-count // most))
    labels = [f"{tokens.get(first + place, '')!r}"[1:-1] + f"  {first + place}" for place in places]
    axis.set_ticks(places, labels, fontsize=6, parse_math=False)
