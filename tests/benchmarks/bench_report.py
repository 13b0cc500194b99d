"""How long the report takes and how big it is, against numpy and charts with their data inline.

    python tests/benchmarks/bench_report.py

The other way computes the same comparisons, averages and summaries with the obvious functions (argsort, sets, means
of groups) on vectors in memory, and writes each chart as a whole Vega-Lite specification with its rows. It is timed on a share of the work and scaled,
since its cost is linear in pairs; both ways run in this one process, one after the other.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from synthetic_lake import make_lake

sys.path.insert(0, str(Path(__file__).parents[1]))
import browser
from synthetic import ROLES, Shape

from warehouse import vocabulary
from warehouse.catalog import catalog
from warehouse.lake import lake
from warehouse.report import page
from warehouse.report.write import write_report

SITES = vocabulary.STATE_SITES
METRICS = ("cosine", "mae", "jaccard")
SMALL = {
    "layers": 30,
    "width": 576,
    "heads": 9,
    "mlp": 1536,
    "attention": False,
    "outputs": False,
    "sites": SITES,
}


def top(vector: np.ndarray) -> set:
    return set(np.argsort(-np.abs(vector))[: max(1, len(vector) // 100)].tolist())


def compare(a: np.ndarray, b: np.ndarray) -> dict:
    """The three metrics of two vectors, as one would write them first."""
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    one, other = top(a), top(b)
    return {
        "cosine": cosine,
        "mae": float(np.abs(a - b).mean()),
        "jaccard": len(one & other) / len(one | other),
    }


def load(target: lake.Lake, run_id: str) -> dict:
    """A run's states in memory: (state, index, layer, site) → vector."""
    table = pq.read_table(target.dataset("states", run_id) / "part-0.parquet", partitioning=None)
    width = len(table["vector"][0])
    values = table["vector"].combine_chunks().values.to_numpy().reshape(-1, width)
    keys = zip(
        *(table[name].to_pylist() for name in ("state", "state_index", "layer", "site")),
        strict=True,
    )
    return dict(zip(keys, values, strict=True))


class Inline:
    """Charts that carry their own rows, as a page of `vegaEmbed` calls has them."""

    def __init__(self):
        self.spec = page.charts()["reference_layers"]
        self.size = 0

    def add(self, rows: list[dict]) -> None:
        self.size += len(json.dumps(self.spec | {"data": {"values": rows}}))


def means(rows: list[dict], keys: tuple, values: tuple) -> list[dict]:
    """Mean of some columns over the rows that agree in others."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return [
        dict(zip(keys, group, strict=True))
        | {name: float(np.mean([row[name] for row in some])) for name in values}
        for group, some in groups.items()
    ]


def summary(rows: list[dict]) -> dict:
    """The spread of the metrics over the layers, and where the extremes are."""
    found = {}
    for name, extreme in (("cosine", np.argmin), ("mae", np.argmax), ("jaccard", np.argmin)):
        values = np.array([row[name] for row in rows])
        end = int(extreme(values))
        found |= {f"{name}_mean": values.mean(), f"{name}_std": values.std(), f"{name}_median": np.median(values),
                  f"{name}_end": values[end], f"{name}_layer": rows[end]["layer"]}  # fmt: skip
    return found


def numpy_run(states: dict, shape: Shape, charts: Inline) -> None:
    """Everything that the report says about one run's states, a chart for each site and metric."""
    layers, last = range(shape.layers), shape.steps - 1
    role_of = {k: ROLES[0] if k == 0 else ROLES[1 + (k + 1) % 2] for k in range(shape.messages + 1)}
    for site in SITES:
        rows = [
            {"layer": n, "site": site}
            | compare(states["initial", 0, n, site], states["final", last, n, site])
            for n in layers
        ]
        summary(rows)
        for _ in METRICS:
            charts.add(rows)
        centre = [
            np.mean([states["reference", i, n, site] for i in range(len(shape.labels))], axis=0)
            for n in layers
        ]
        everything = []
        for message, role in role_of.items():
            rows = []
            for n in layers:
                for i, label in enumerate(shape.labels):
                    a, b = states["snapshot", message, n, site], states["reference", i, n, site]
                    x, y = a - centre[n], b - centre[n]
                    centred = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
                    where = {
                        "message": message,
                        "role": role,
                        "label": label,
                        "site": site,
                        "layer": n,
                    }
                    rows.append(where | {"centred": centred} | compare(a, b))
            everything += rows
            for _ in METRICS:
                charts.add(rows)
        turns = [row for row in everything if row["message"] < shape.messages]
        for _ in METRICS:  # a role's messages against each reference, user and assistant
            for role in ("user", "assistant"):
                charts.add(
                    means(
                        [row for row in turns if row["role"] == role], ("label", "layer"), METRICS
                    )
                )
        by_message = means(everything, ("message", "role", "label"), (*METRICS, "centred"))
        for _ in METRICS:
            charts.add(by_message)  # lines over the messages
            charts.add(by_message)  # and a heatmap
        usual = {key: {row[key]: row["cosine"] for row in means(by_message, (key,), ("cosine",))}
                 for key in ("message", "label")}  # fmt: skip
        overall = float(np.mean([row["cosine"] for row in by_message]))
        charts.add([row | {"shift": row["cosine"] - usual["message"][row["message"]] - usual["label"][row["label"]]
                           + overall} for row in by_message])  # fmt: skip
        means(turns, ("label",), METRICS)  # the table of references, over all messages and by role
        means(turns, ("role", "label"), METRICS)
        for scale in ("cosine", "centred"):
            spread = defaultdict(list)
            for row in means(turns, ("role", "layer", "label"), (scale,)):
                spread[row["role"], row["layer"]].append(row[scale])
            charts.add([{"role": role, "layer": n, "spread": max(some) - min(some)}
                        for (role, n), some in spread.items()])  # fmt: skip
            charts.add(means(turns, ("role", "label"), (scale,)))  # damping
            fade = []
            for origin in (row for row in by_message if row["role"] == "user"):
                beside = [row for row in by_message if row["message"] == origin["message"]]
                if origin["label"] == max(beside, key=lambda row: row[scale])["label"]:
                    fade += [row | {"turn": origin["message"]} for row in by_message
                             if row["label"] == origin["label"] and row["message"] >= origin["message"]]  # fmt: skip
            charts.add(fade)
    for state, step in (("initial", 0), ("final", last)):
        rows = []
        for n in layers:
            parts = {site: states[state, step, n, site] for site in SITES}
            out = parts["hidden_out"]
            rows.append({"layer": n} | {f"norm_{site}": float(np.linalg.norm(x)) for site, x in parts.items()} | {
                f"cosine_{site}": float(parts[site] @ out / (np.linalg.norm(parts[site]) * np.linalg.norm(out)))
                for site in ("attn_out", "mlp_down_out")})  # fmt: skip
        charts.add(rows)
        charts.add(rows)


def numpy_pair(a: dict, b: dict, shape: Shape) -> list[dict]:
    """Everything that the report says about two runs."""
    rows = []
    for state, at in (("initial", 0), ("final", shape.steps - 1)):
        for site in SITES:
            some = [
                {"state": state, "site": site, "layer": n}
                | compare(a[state, at, n, site], b[state, at, n, site])
                for n in range(shape.layers)
            ]
            summary(some)
            rows += some
    return rows


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument(
        "--share", type=int, default=20, help="time the numpy way on one run in so many"
    )
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=browser.executable() is not None
    )
    options = parser.parse_args()
    page.vega()  # bundled once per installation, not per report
    lines = ["| what | report | numpy, inline charts | ratio |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "1 run, 20 messages": (1, Shape(**SMALL, messages=20, steps=50)),
            f"{options.runs} runs, 8 messages": (options.runs, Shape(**SMALL, messages=8)),
        }
        for name, (count, shape) in cases.items():
            target = make_lake(
                Path(folder) / str(count), count, shape, with_activations=int(count == 1)
            )
            catalog.sync(target)
            out = Path(folder) / f"{count}.html"
            seconds, size = ours(target, out)
            slow, big = other_way(
                target, target.run_ids(), shape, options.share if count > 1 else 1
            )
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
    print(
        f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
    )


if __name__ == "__main__":
    main()
