"""Figures of a comparison that are more than SQL can say: linear algebra over the rows of a query.

Each function takes the rows of the query of its name in `reports/serve/queries`, and gives the rows
that are drawn.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

#: Singular values that are told of each layer.
VALUES = 32


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Vectors of one width as (rows, width) float64."""
    lists = column.combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False).astype(float).reshape(len(lists), -1)


def pca(table: pa.Table) -> pa.Table:
    """Vectors of (place, layer) in the plane of their most variance.

    Returns:
        Columns place, layer, pc1, pc2, and the shares of the variance along each, share1, share2.
    """
    if table.num_rows < 2:
        return pa.table({name: [] for name in ("place", "layer", "pc1", "pc2", "share1", "share2")})
    x = np.nan_to_num(_matrix(table["vector"]))
    x -= x.mean(0)
    # The smaller of the two Gram matrices has the same nonzero eigenvalues.
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :2]
    points = vectors * np.sqrt(values[:2]) if wide else x @ vectors
    points *= np.where(points.sum(0) < 0, -1, 1)  # which side means nothing: the same one each time
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    shares = np.pad(values, (0, 2))[:2] / (values.sum() or 1)
    each = {f"share{n + 1}": np.full(len(x), shares[n]) for n in range(2)}
    own = {"place": table["place"], "layer": table["layer"]}
    return pa.table(own | {"pc1": points[:, 0], "pc2": points[:, 1]} | each)


def average_linkage(distance: np.ndarray) -> list[tuple[int, int, float, int]]:
    """Join the two nearest groups until one is left; the mean over all pairs is how far two are.

    Args:
        distance: (n, n), symmetric.

    Returns:
        For each of the n − 1 steps both groups, how far they are, and their members together, as
        `scipy.cluster.hierarchy.linkage` has it: groups from n on are those of earlier steps.
    """
    n = len(distance)
    far = distance.astype(float)
    np.fill_diagonal(far, np.inf)
    names, sizes = list(range(n)), np.ones(n)
    steps: list[tuple[int, int, float, int]] = []
    for step in range(n - 1):
        a, b = sorted(map(int, np.unravel_index(np.argmin(far), far.shape)))
        size = sizes[a] + sizes[b]
        first, second = sorted((names[a], names[b]))
        steps.append((first, second, float(far[a, b]), int(size)))
        joined = (sizes[a] * far[a] + sizes[b] * far[b]) / size
        far[a], far[:, a], sizes[a], names[a] = joined, joined, size, n + step
        far[a, a] = far[b] = far[:, b] = np.inf
    return steps


def _leaves(steps: list[tuple[int, int, float, int]], n: int) -> list[int]:
    """The order in which members stand, so that no two branches cross."""
    order = [n + len(steps) - 1] if steps else list(range(n))
    while any(one >= n for one in order):
        order = [part for one in order for part in ([one] if one < n else list(steps[one - n][:2]))]
    return order


def dendrogram(table: pa.Table) -> pa.Table:
    """Lines of a dendrogram: from one minus cosines of (place_a, place_b), by average linkage.

    Returns:
        Columns part (branch or leaf), place (of leaves), step (of branches), distance, distance_2,
        row and row_2: lines from one point to another. Members without a cosine are left out.
    """
    columns = (table[name].to_pylist() for name in ("place_a", "place_b", "cosine"))
    rows = zip(*columns, strict=True)
    pairs = {(a, b): 1 - cosine for a, b, cosine in rows if cosine is not None}
    members = sorted({one for pair in pairs for one in pair})
    distance = np.full((len(members), len(members)), 0.0)
    for (a, b), value in pairs.items():
        i, j = members.index(a), members.index(b)
        distance[i, j] = distance[j, i] = value
    steps = average_linkage(distance)
    order = _leaves(steps, len(members))
    at = {member: (float(order.index(member)), 0.0) for member in range(len(members))}
    lines: list[tuple] = [("leaf", members[m], None, 0.0, 0.0, at[m][0], at[m][0]) for m in order]
    for step, (a, b, height, _) in enumerate(steps):
        (row_a, from_a), (row_b, from_b) = at[a], at[b]
        lines += [
            ("branch", None, step, from_a, height, row_a, row_a),
            ("branch", None, step, from_b, height, row_b, row_b),
            ("branch", None, step, height, height, row_a, row_b),
        ]
        at[len(members) + step] = ((row_a + row_b) / 2, height)
    names = ("part", "place", "step", "distance", "distance_2", "row", "row_2")
    values = list(zip(*lines, strict=True)) if lines else [()] * len(names)
    return pa.table(dict(zip(names, values, strict=True)))


def spectra(table: pa.Table) -> pa.Table:
    """Singular values of each state's tokens without their mean, per (place, layer).

    Returns:
        Columns place, layer, rank from 1, singular, and of each layer tokens, token_rank (exp of
        the entropy of the values over their sum), largest (the first) and nuclear (the sum). None
        of a layer with one token.
    """
    rows = []
    keys = np.stack([table[name].to_numpy() for name in ("place", "layer")], 1)
    for place, layer in np.unique(keys, axis=0):
        chosen = np.flatnonzero((keys == (place, layer)).all(1))
        x = np.nan_to_num(_matrix(table["vector"].take(pa.array(chosen))))
        if len(x) < 2:
            continue
        x -= x.mean(0)
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(x @ x.T)[::-1], 0))[:-1]
        p = values[values > 0] / (values.sum() or 1)
        about = (len(x), float(np.exp(-(p * np.log(p)).sum())), float(values[0]), values.sum())
        rows += [
            (int(place), int(layer), n + 1, one, *about) for n, one in enumerate(values[:VALUES])
        ]
    names = ("place", "layer", "rank", "singular", "tokens", "token_rank", "largest", "nuclear")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return pa.table(dict(zip(names, columns, strict=True)))


#: What is drawn of a query's rows, by its name.
COMPUTED: dict[str, Callable[[pa.Table], pa.Table]] = {
    "compare_pca": pca,
    "compare_dendrogram": dendrogram,
    "compare_spectra": spectra,
}
