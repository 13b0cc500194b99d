"""Sums over vectors that merge: of each run, then of all, as if one machine had read them.

Means and second moments merge by the formula of Chan, Golub and LeVeque (1983), "Algorithms for
computing the sample variance", which loses nothing where means are large. All are float64.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from warehouse.catalog.catalog import connect
from warehouse.catalog.runs import find_runs
from warehouse.cluster.workers import Each, in_order
from warehouse.errors import AlabError
from warehouse.exchange.matrix import Vectors, find_vectors
from warehouse.lake.lake import Lake

#: Rows whose vectors are in memory at once.
ROWS = 1 << 13
#: A site and a layer.
Place = tuple[str, int]


@dataclass(frozen=True)
class Moments:
    """How many vectors there are, their mean, and the sum of squares around it.

    Attributes:
        n: vectors.
        mean: (width,).
        m2: (width,), Σ (x − mean)².
    """

    n: int
    mean: np.ndarray
    m2: np.ndarray

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both sets of vectors."""
        n, mean, between = _joined(self, other)
        return Moments(n, mean, self.m2 + other.m2 + between * (other.mean - self.mean) ** 2)

    @property
    def variance(self) -> np.ndarray:
        """(width,) population variance."""
        return self.m2 / self.n


@dataclass(frozen=True)
class Gram:
    """Products of vectors x with one another, and with what stands beside each: all around means.

    What is fitted linearly needs no more: a ridge regression of centred columns is
    `np.linalg.solve(gram.xx + penalty * np.eye(gram.width), gram.xy)`.

    Attributes:
        n: rows.
        mean: (width + beside,) of x, then of y.
        products: (width + beside, width + beside), Σ (z − mean)(z − mean)ᵀ where z is x, then y.
        width: width of x; what is left is y, the vectors of another place, or numbers of labels.
    """

    n: int
    mean: np.ndarray
    products: np.ndarray
    width: int

    def __add__(self, other: "Gram") -> "Gram":
        """Those of both sets of rows."""
        n, mean, between = _joined(self, other)
        apart = other.mean - self.mean
        products = self.products + other.products + between * np.outer(apart, apart)
        return Gram(n, mean, products, self.width)

    @property
    def xx(self) -> np.ndarray:
        """(width, width), XᵀX of centred columns."""
        return self.products[: self.width, : self.width]

    @property
    def xy(self) -> np.ndarray:
        """(width, beside), XᵀY of centred columns."""
        return self.products[: self.width, self.width :]

    @property
    def yy(self) -> np.ndarray:
        """(beside, beside), YᵀY of centred columns."""
        return self.products[self.width :, self.width :]

    @property
    def cka(self) -> float:
        """Linear CKA of x and y, biased, ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖): Kornblith et al. (2019)."""
        norm = np.linalg.norm
        return float(norm(self.xy) ** 2 / (norm(self.xx) * norm(self.yy)))


@dataclass(frozen=True)
class Histogram:
    """How many numbers lie where.

    Attributes:
        edges: (k + 1,), rising.
        counts: (k + 2,) below the first edge, from each edge on to the next, from the last on; NaN
            is in none.
    """

    edges: np.ndarray
    counts: np.ndarray

    def __add__(self, other: "Histogram") -> "Histogram":
        """That of both sets of numbers.

        Raises:
            ValueError: the edges are not the same.
        """
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("histograms of other edges cannot be added")
        return Histogram(self.edges, self.counts + other.counts)


class _Asked(NamedTuple):
    """What is computed of a run."""

    lake: Lake
    run: str
    site: str
    layer: int
    selector: str
    beside: Place | Sequence[str] = ()
    edges: Any = None


def merged(
    what: Callable[[Any], Any], lake: Lake, runs: str | Sequence[str], each: Each, *asked: Any
) -> Any:
    """What `moments`, `gram` or `histogram` gives of each run, merged in the order of the runs.

    Args:
        what: the function.
        lake: the warehouse's lake.
        runs: ids, unique prefixes, patterns with `*`, or `latest`.
        each: the workers.
        asked: site, layer and selector; what stands beside; edges.

    Raises:
        AlabError: no run is named, which elsewhere means all.
    """
    if not runs:
        raise AlabError("no run is named", "All of them: '*'.", 2)
    with connect(lake) as db:
        ids = find_runs(db, [runs] if isinstance(runs, str) else runs)
    return reduce(add, in_order(each(what, [_Asked(lake, run, *asked) for run in ids])))


def rising(edges: Any) -> np.ndarray:
    """Edges of a histogram, float64.

    Raises:
        AlabError: with exit code 2; they do not rise.
    """
    found = np.asarray(edges, np.float64)
    if found.ndim != 1 or len(found) < 2 or not (np.diff(found) > 0).all():
        raise AlabError("the edges of a histogram rise, and are 2 or more", "Try [-1, 0, 1].", 2)
    return found


def _joined(a: Moments | Gram, b: Moments | Gram) -> tuple[int, np.ndarray, float]:
    """Number and mean of both, and the weight of what lies between their means."""
    if a.mean.shape != b.mean.shape:
        raise AlabError(
            f"vectors {len(a.mean)} and {len(b.mean)} wide do not add up", "Name runs of one model."
        )
    n = a.n + b.n
    return n, a.mean + (b.mean - a.mean) * (b.n / n), a.n * b.n / n


def moments(asked: _Asked) -> Moments:
    """Mean and variance of a run's vectors."""
    return reduce(add, (Moments(*_around(x, squares=True)) for x, _ in _blocks(asked)))


def gram(asked: _Asked) -> Gram:
    """Products of a run's vectors."""
    pairs = ((np.hstack(pair), pair[0].shape[1]) for pair in _blocks(asked))
    return reduce(add, (Gram(*_around(z, squares=False), width) for z, width in pairs))


def histogram(asked: _Asked) -> Histogram:
    """Where the numbers of a run's vectors lie."""
    counts = np.zeros(len(asked.edges) + 1, np.int64)
    for x, _ in _blocks(asked):
        places = np.searchsorted(asked.edges, x[~np.isnan(x)], side="right")
        counts += np.bincount(places, minlength=len(counts))
    return Histogram(asked.edges, counts)


def _around(x: np.ndarray, *, squares: bool) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of rows, their mean, and the squares or products around it."""
    mean = x.mean(0)
    rest = x - mean
    return len(x), mean, (rest**2).sum(0) if squares else rest.T @ rest


def _blocks(asked: _Asked) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors and what stands beside them, float64, some rows at a time; none without a label."""
    count = 0
    with connect(asked.lake) as db:
        vectors = find_vectors(asked.lake, db, *asked[1:5])
        beside = _beside(asked, db, vectors)
        for start in range(0, len(vectors), ROWS):
            stop = min(start + ROWS, len(vectors))
            y = beside.read(start, stop) if isinstance(beside, Vectors) else beside[start:stop]
            known = slice(None) if isinstance(beside, Vectors) else ~np.isnan(y).any(1)
            x, y = (some.astype(np.float64)[known] for some in (vectors.read(start, stop), y))
            count += len(x)
            if len(x):
                yield x, y
    if not count:
        raise AlabError(f"no row of {asked.run} has all of {', '.join(map(str, asked.beside))}", "")


def _beside(asked: _Asked, db: Any, vectors: Vectors) -> Vectors | np.ndarray:
    """The vectors of another place, or the numbers of labels; NaN where a label is NULL."""
    match asked.beside:
        case (str() as site, int() as layer):
            others = find_vectors(asked.lake, db, asked.run, site, layer, asked.selector)
            if not np.array_equal(others.prompts, vectors.prompts):
                raise AlabError(f"{asked.run} has other rows of {site} in layer {layer}", "")
            return others
    columns = [_numbers(vectors.labels, name) for name in asked.beside]
    return np.stack(columns, 1) if columns else np.empty((len(vectors), 0))


def _numbers(labels: pa.Table, name: Any) -> np.ndarray:
    if name not in labels.column_names:
        there = ", ".join(labels.column_names)
        raise AlabError(f"the dataset has no column {name!r}", f"There are: {there}")
    try:
        return labels[name].cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise AlabError(f"the column {name} has no numbers", "Name one that has.") from error
