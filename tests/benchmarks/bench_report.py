"""How long the report takes and how big it is, against numpy and charts with their data inline.

    python tests/benchmarks/bench_report.py

The other way computes the same comparisons with the obvious functions (argsort, sets) on vectors in memory, and
writes each chart as a whole Vega-Lite specification with its rows. It is timed on a share of the work and scaled,
since its cost is linear in pairs; both ways run in this one process, one after the other.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from synthetic_lake import make_lake

sys.path.insert(0, str(Path(__file__).parents[1]))
import browser
from synthetic import Shape

from warehouse import catalog, lake, page
from warehouse.report import write_report

SITES = lake.STATE_SITES
METRICS = ("cosine", "mae", "jaccard")
SMALL = {"layers": 30, "width": 576, "heads": 9, "mlp": 1536, "attention": False, "outputs": False, "sites": SITES}


def top(vector: np.ndarray) -> set:
    return set(np.argsort(-np.abs(vector))[: max(1, len(vector) // 100)].tolist())


def compare(a: np.ndarray, b: np.ndarray) -> dict:
    """The three metrics of two vectors, as one would write them first."""
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    one, other = top(a), top(b)
    return {"cosine": cosine, "mae": float(np.abs(a - b).mean()), "jaccard": len(one & other) / len(one | other)}


def load(target: lake.Lake, run_id: str) -> dict:
    """A run's states in memory: (state, index, layer, site) → vector."""
    table = pq.read_table(target.dataset("states", run_id) / "part-0.parquet", partitioning=None)
    width = len(table["vector"][0])
    values = table["vector"].combine_chunks().values.to_numpy().reshape(-1, width)
    keys = zip(*(table[name].to_pylist() for name in ("state", "state_index", "layer", "site")), strict=True)
    return dict(zip(keys, values, strict=True))


class Inline:
    """Charts that carry their own rows, as a page of `vegaEmbed` calls has them."""

    def __init__(self):
        self.spec = page.charts()["reference_layers"]
        self.size = 0

    def add(self, rows: list[dict]) -> None:
        self.size += len(json.dumps(self.spec | {"data": {"values": rows}}))


def numpy_run(states: dict, shape: Shape, charts: Inline) -> None:
    """Everything that the report says about one run's states."""
    layers = range(shape.layers)
    for site in SITES:
        rows = [
            {"layer": n, "site": site}
            | compare(states["initial", 0, n, site], states["final", shape.steps - 1, n, site])
            for n in layers
        ]
        for _ in METRICS:
            charts.add(rows)
        centre = [
            np.mean([states["reference", i, n, site] for i in range(len(shape.labels))], axis=0) for n in layers
        ]
        everything = []
        for message in range(shape.messages + 1):
            rows = []
            for n in layers:
                for i, label in enumerate(shape.labels):
                    a, b = states["snapshot", message, n, site], states["reference", i, n, site]
                    x, y = a - centre[n], b - centre[n]
                    centred = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
                    where = {"message": message, "label": label, "site": site, "layer": n, "centred": centred}
                    rows.append(where | compare(a, b))
            everything += rows
            for _ in METRICS:
                charts.add(rows)
        for _ in range(2 * len(METRICS)):  # averages of user and assistant messages
            charts.add(everything[:: shape.messages])
        for _ in range(2 * len(METRICS)):  # lines and heatmap over the messages
            charts.add(everything[:: shape.layers])


def numpy_pair(a: dict, b: dict, shape: Shape) -> list[dict]:
    """Everything that the report says about two runs."""
    states = (("initial", 0), ("final", shape.steps - 1))
    return [
        {"state": state, "site": site, "layer": n} | compare(a[state, at, n, site], b[state, at, n, site])
        for state, at in states
        for site in SITES
        for n in range(shape.layers)
    ]


def other_way(target: lake.Lake, ids: list[str], shape: Shape, share: int) -> tuple[float, float]:
    """Seconds and megabytes of the numpy way, from one run and pair in `share`."""
    charts = Inline()
    start = time.perf_counter()
    some = [load(target, run_id) for run_id in ids[::share]]
    for states in some:
        numpy_run(states, shape, charts)
    runs = time.perf_counter() - start
    pairs = list(combinations(some, 2))
    start = time.perf_counter()
    rows = [numpy_pair(a, b, shape) for a, b in pairs]
    between = time.perf_counter() - start
    for chosen in rows[:16]:
        for _ in range(len(SITES) * len(METRICS)):
            charts.add(chosen[: 2 * shape.layers])
    scale = len(ids) / len(some)
    total = len(ids) * (len(ids) - 1) / 2
    return runs * scale + (between / len(pairs) * total if pairs else 0), charts.size * scale / 1e6


def ours(target: lake.Lake, out: Path) -> tuple[float, float]:
    """Seconds and megabytes of the report."""
    start = time.perf_counter()
    write_report(target, out=out)
    return time.perf_counter() - start, out.stat().st_size / 1e6


def in_browser(path: Path) -> tuple[float, float, float]:
    """Seconds until the first chart is drawn, and megabytes of heap: then, and with ten runs open and drawn."""
    with browser.chromium() as running:
        tab = browser.Tab(running.new_page(viewport={"width": 1280, "height": 900}), path)
        tab.page.evaluate("document.querySelector('figure[data-chart]').scrollIntoView()")
        tab.until("document.querySelector('figure[data-state=drawn]')")
        first = tab.page.evaluate("performance.now()") / 1000
        session = tab.page.context.new_cdp_session(tab.page)

        def heap() -> float:
            return session.send("Runtime.getHeapUsage")["usedSize"] / 1e6

        before = heap()
        tab.page.evaluate(
            "[...document.querySelectorAll('details.run')].slice(0, 10).forEach((d) => { d.open = true })"
        )
        tab.draw_all(open_folds=False)
        return first, before, heap()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--share", type=int, default=20, help="time the numpy way on one run in so many")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=browser.executable() is not None)
    options = parser.parse_args()
    page.vega()  # bundled once per installation, not per report
    lines = ["| what | report | numpy, inline charts | ratio |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "1 run, 20 messages": (1, Shape(**SMALL, messages=20, steps=50)),
            f"{options.runs} runs, 8 messages": (options.runs, Shape(**SMALL, messages=8)),
        }
        for name, (count, shape) in cases.items():
            target = make_lake(Path(folder) / str(count), count, shape, with_activations=int(count == 1))
            catalog.sync(target)
            out = Path(folder) / f"{count}.html"
            seconds, size = ours(target, out)
            slow, big = other_way(target, target.run_ids(), shape, options.share if count > 1 else 1)
            lines += [
                f"| {name}: seconds | {seconds:.1f} | {slow:.1f} | {slow / seconds:.1f} |",
                f"| {name}: megabytes | {size:.2f} | {big:.1f} | {big / size:.0f} |",
            ]
            if options.browser:
                first, before, after = in_browser(out)
                lines += [
                    f"| {name}: first chart drawn, seconds | {first:.2f} | | |",
                    f"| {name}: heap at first, and with ten runs drawn, MB | {before:.0f}, {after:.0f} | | |",
                ]
    print("\n".join(lines))
    print(f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
