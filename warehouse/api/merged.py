"""What of many runs merges into one answer, on one machine or on many."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from warehouse.api.arrays import Arrays
from warehouse.cluster import aggregates, queries
from warehouse.cluster.workers import workers

if TYPE_CHECKING:
    import pyarrow as pa

#: Runs by their ids, unique prefixes, patterns with `*`, or `latest`.
Runs = str | Sequence[str]


class Merged(Arrays):
    """The part of `Warehouse` that asks each of many runs, and merges the answers.

    In each method `ray` is the address of a Ray, `auto`, or `local` to start one meanwhile; None
    does without, with the same numbers.
    """

    def map(self, query: str, *runs: str, ray: str | None = None) -> "pa.Table":
        """Run a query for each of some runs, or of all; `$run` in it is the run's id.

        Returns:
            All rows, run by run, with a column `run_id`.

        Raises:
            AlabError: no such run or Ray, or the query does not run, or does not say `$run`.

        >>> table = lab.map("SELECT site, mae_mean FROM intra_run_summary($run)")
        >>> table.column_names, table.num_rows
        (['run_id', 'site', 'mae_mean'], 8)
        """
        with workers(ray) as each:
            return queries.ask_each(self._lake, query, runs, each)

    def moments(
        self, runs: Runs, site: str, layer: int, selector: str = "last", *, ray: str | None = None
    ) -> aggregates.Moments:
        """Mean and variance, float64, of the vectors that `matrix` gives of some runs.

        Args:
            runs: ids, unique prefixes, patterns with `*`, or `latest`.
            site: as for `matrix`.
            layer: 0-based decoder block.
            selector: which positions, as for `matrix`.
            ray: address of a Ray.

        Returns:
            `n`, `mean`, `m2`, `variance`; two add up, as of runs of two lakes.

        Raises:
            AlabError: no such run, site, layer, selector or Ray, or vectors of different widths.

        >>> both = lab.moments(["alpha", "beta"], "hidden_out", 2, "all")
        >>> both.n, both.mean.shape
        (24, (16,))
        """
        with workers(ray) as each:
            return aggregates.merged(
                aggregates.moments, self._lake, runs, each, site, layer, selector
            )

    def gram(
        self,
        runs: Runs,
        site: str,
        layer: int,
        selector: str = "last",
        *,
        beside: aggregates.Place | Sequence[str] = (),
        ray: str | None = None,
    ) -> aggregates.Gram:
        """Products, float64, of these vectors with one another and with what stands beside each.

        Args:
            runs: as for `moments`; and so on.
            site: as for `matrix`.
            layer: 0-based decoder block.
            selector: which positions, as for `matrix`.
            beside: another place, `("hidden_out", 7)`, or columns of the dataset that are numbers,
                `["latitude"]`; rows where one is NULL are left out.
            ray: address of a Ray.

        Returns:
            `n`, `xx`, `xy`, `yy` of centred columns, `mean`, `cka`; two add up.

        Raises:
            AlabError: as `moments`, or there is no such column, or it has no numbers.

        >>> layers = lab.gram("*", "hidden_out", 0, "all", beside=("hidden_out", 2))
        >>> layers.xy.shape, 0 < layers.cka < 1
        ((16, 16), True)
        """
        with workers(ray) as each:
            return aggregates.merged(
                aggregates.gram, self._lake, runs, each, site, layer, selector, beside
            )

    def histogram(
        self,
        runs: Runs,
        site: str,
        layer: int,
        edges: Sequence[float] | np.ndarray,
        selector: str = "last",
        *,
        ray: str | None = None,
    ) -> aggregates.Histogram:
        """How many numbers of these vectors lie below, between and from the last of some edges on.

        Raises:
            AlabError: as `moments`, or the edges do not rise.

        >>> lab.histogram("latest", "hidden_out", 2, [-1000, 0, 1000], "all").counts.sum()
        np.int64(192)
        """
        with workers(ray) as each:
            asked = site, layer, selector, (), aggregates.rising(edges)
            return aggregates.merged(aggregates.histogram, self._lake, runs, each, *asked)

    def nearest_tokens(
        self,
        vector: Sequence[float] | np.ndarray,
        site: str,
        layer: int,
        k: int,
        *runs: str,
        ray: str | None = None,
    ) -> "pa.Table":
        """The tokens of some runs, or of all, whose vectors point most nearly along a given one.

        Returns:
            What `nearest_tokens` gives in SQL: the k tokens with the largest cosine.

        Raises:
            AlabError: no such run or Ray.

        >>> vector = lab.vector("beta", "hidden_out", 2)
        >>> lab.nearest_tokens(vector, "hidden_out", 2, 3)["cosine"][0].as_py() > 0.99
        True
        """
        with workers(ray) as each:
            return queries.nearest(self._lake, list(map(float, vector)), site, layer, k, runs, each)
