"""Vectors in two dimensions: those in which they differ most (PCA)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

#: Coordinates are rounded to this share of the largest: finer than a pixel of any screen.
GRAIN = 5e-4


@dataclass
class Plane:
    """The vectors of one layer in the plane of the two directions of most variance.

    Attributes:
        layer: the 0-based decoder block.
        prompts: `prompt_id` of each vector.
        points: (n, 2) coordinates, from the mean of all; NaN where a vector is not finite.
        shares: which part of the whole variance each direction has; 0 where there is none.
    """

    layer: int
    prompts: np.ndarray
    points: np.ndarray
    shares: tuple[float, float]


def sample(count: int, most: int, seed: int = 0) -> np.ndarray:
    """Ascending indices of at most `most` of `count` rows, the same for the same seed."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def planes(layers: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> Iterator[Plane]:
    """The plane of each layer, given as (layer, prompt ids, vectors).

    The sign of a direction means nothing: it is that in which the points lie most nearly as in the
    layer before, so that they do not jump from one layer to the next.
    """
    before: dict[int, np.ndarray] = {}
    for layer, prompts, vectors in layers:
        points, shares = principal(vectors)
        last = np.array([before.get(prompt, (0.0, 0.0)) for prompt in prompts.tolist()])
        points *= np.where(np.nansum(points * last.reshape(-1, 2), axis=0) < 0, -1, 1)
        before = dict(zip(prompts.tolist(), points, strict=True))
        yield Plane(layer, prompts, rounded(points), shares)


def principal(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Coordinates along the two directions of most variance, and their shares of it.

    Args:
        vectors: (n, width); rows with a value that is not finite are left out.

    Returns:
        (n, 2) float64, in each column the largest of all numbers positive; and the two shares.
    """
    finite = np.isfinite(vectors).all(axis=1)
    points = np.where(finite[:, None], np.zeros((len(vectors), 2)), np.nan)
    if finite.sum() < 2:
        return points, (0.0, 0.0)
    centred = vectors[finite].astype(np.float64)
    centred -= centred.mean(axis=0)
    n, width = centred.shape
    # Of XᵀX and XXᵀ the smaller: their largest eigenvalues are the same.
    values, directions = np.linalg.eigh(centred.T @ centred if width <= n else centred @ centred.T)
    top = np.maximum(values[:-3:-1], 0)
    found = directions[:, :-3:-1]
    found = centred @ found if width <= n else found * np.sqrt(top)
    found = found * np.sign(found[np.abs(found).argmax(axis=0), range(found.shape[1])])
    points[finite, : found.shape[1]] = found
    whole = float(np.square(centred).sum())
    shares = [float(value) / whole if whole else 0.0 for value in top]
    return points, (shares[0], shares[1] if len(shares) > 1 else 0.0)


def rounded(points: np.ndarray) -> np.ndarray:
    """The points on a grid that is finer than a screen's."""
    largest = np.nanmax(np.abs(points), initial=0.0)
    if not largest:
        return points
    places = int(np.ceil(-np.log10(largest * GRAIN)))
    return np.round(points, places) + 0.0  # no −0
