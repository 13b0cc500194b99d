"""What the SQL library costs, beside the same in plain numpy: `python tests/benchmarks/bench_sql.py`.

Everything is measured in one run on one machine, so the ratios hold where the times do not. `--quick` takes
smaller sizes; `--threads` limits DuckDB; `--only NAME` runs one part.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_lake import FULL, make_lake, vectors

from warehouse.catalog import catalog
from warehouse.lake import schemas as parquet
from warehouse.lake.parquet import open_parquet

WIDTH, TOP = FULL.width, FULL.width // 100


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def mae(a, b):
    return np.abs(a - b).mean()


def jaccard(a, b):
    one, two = set(np.argsort(-np.abs(a))[:TOP]), set(np.argsort(-np.abs(b))[:TOP])
    return len(one & two) / len(one | two)


def seconds(function: Callable, repeat: int = 3) -> float:
    """The least time of a few runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def row(*cells) -> None:
    print(
        "| "
        + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        + " |"
    )


def table(title: str, *names: str) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(names)} |\n|{' --- |' * len(names)}")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def pairs(folder: Path, n: int, threads: int) -> None:
    """Cosine, MAE and overlap of n pairs: SQL from Parquet against numpy in memory."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((n, WIDTH), "f4").astype("f2").astype("f4")
    b = (0.7 * a + 0.7 * rng.standard_normal((n, WIDTH), "f4")).astype("f2").astype("f4")
    schema = pa.schema(
        [pa.field("id", pa.int64(), False), *(pa.field(x, parquet.vector(WIDTH)) for x in "ab")]
    )
    with open_parquet(folder / "pairs.parquet", schema) as writer:
        columns = [pa.array(range(n)), vectors(a), vectors(b)]
        writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=512)
    lake = make_lake(folder / "small", 1, distinct=1, only_ends=True)
    sample = range(min(n, 2000))
    numpy = [
        seconds(lambda f=f: [f(a[i], b[i]) for i in sample], 1) / len(sample)
        for f in (cosine, mae, jaccard)
    ]
    with catalog.connect(lake) as db:
        db.execute(f"SET threads = {threads}")
        db.execute(f"CREATE TEMP VIEW mine AS FROM read_parquet('{folder}/pairs.parquet')")
        ours = seconds(lambda: db.execute("FROM compare_pairs('mine')").fetchnumpy()) / n
        macros = "SELECT cosine(a, b), mae(a, b), top_jaccard(a, b) FROM (FROM mine LIMIT 2000)"
        scalar = seconds(lambda: db.execute(macros).fetchnumpy(), 1) / 2000
        read = seconds(lambda: db.execute("SELECT sum(a[1] + b[1]) FROM mine").fetchnumpy()) / n
    table(f"{n:,} pairs of {WIDTH:,}-wide vectors", "what", "µs a pair", "numpy ÷ this")
    for name, value in (("numpy, in memory", sum(numpy)), ("compare_pairs, from Parquet", ours),
                        ("of that, reading", read), ("scalar macros, from Parquet", scalar)):  # fmt: skip
        row(name, value * 1e6, sum(numpy) / value)


def inter_run(folder: Path, sizes: list[int], threads: int) -> None:
    """`inter_run_all_summary` over all pairs of runs, and how it grows."""
    table("inter_run_all_summary: 2 states × 4 sites × 36 layers", "runs", "pairs of vectors", "seconds",
          "µs a pair", "numpy µs a pair", "numpy ÷ SQL", "peak GB")  # fmt: skip
    spent = []
    for runs in sizes:
        lake = make_lake(folder / f"inter{runs}", runs, distinct=runs, only_ends=True)
        n = runs * (runs - 1) // 2 * 2 * 4 * FULL.layers
        with catalog.connect(lake) as db:
            db.execute(f"SET threads = {threads}")
            db.execute("SET memory_limit = '4GB'")
            states = db.execute(
                "SELECT vector FROM states WHERE site = 'hidden_out' AND layer = 1"
            ).fetchall()
            states = np.array([vector for (vector,) in states], "f4")
            some = list(combinations(range(len(states)), 2))[:1000]
            before = [numpy_pairs(states, some)]
            took = seconds(
                lambda: db.execute("FROM inter_run_all_summary()").fetchnumpy(),
                1 if runs > 50 else 2,
            )
            before.append(numpy_pairs(states, some))
        spent.append((n, took))
        row(runs, f"{n:,}", took, took / n * 1e6, statistics.mean(before) * 1e6,
            statistics.mean(before) * n / took, peak_gb())  # fmt: skip
    if len(spent) > 2:
        slope = np.polyfit(*np.log(np.array(spent).T), 1)[0]
        print(f"\nSlope of log seconds over log pairs: {slope:.2f} (1 is linear); between the two largest: "
              f"{np.log(spent[-1][1] / spent[-2][1]) / np.log(spent[-1][0] / spent[-2][0]):.2f}")  # fmt: skip


def numpy_pairs(states: np.ndarray, some: list) -> float:
    """Seconds that the three functions take for one pair."""
    return seconds(
        lambda: [f(states[i], states[j]) for i, j in some for f in (cosine, mae, jaccard)], 1
    ) / len(some)


def one_run(folder: Path, few: int, many: int, threads: int) -> None:
    """A query about one run in a small and in a large lake, in turn."""
    lakes = [make_lake(folder / f"lake{n}", n, with_activations=min(n, 20)) for n in (few, many)]
    table("A query about one run", "query", f"ms, {few} runs", f"ms, {many} runs", "ratio")
    for lake in lakes:
        catalog.sync(lake)
    queries = [
        "intra_run('{}')",
        "intra_run_summary('{}')",
        "residual_decomposition('{}')",
        "snapshot_reference('{}')",
    ]
    with catalog.connect(lakes[0]) as small, catalog.connect(lakes[1]) as large:
        for query in queries:
            times = ([], [])
            for _ in range(7):
                for db, lake, found in zip((small, large), lakes, times, strict=True):
                    db.execute(f"SET threads = {threads}")
                    sql = "FROM " + query.format(lake.run_ids()[0])
                    found.append(seconds(lambda db=db, sql=sql: db.execute(sql).fetchnumpy(), 1))
            small_ms, large_ms = (min(found) * 1e3 for found in times)
            row(f"`{query.format('…')}`", small_ms, large_ms, large_ms / small_ms)
    opened = [seconds(lambda lake=lake: _open(lake)) * 1e3 for lake in lakes]
    row("opening the catalog", *opened, opened[1] / opened[0])


def _open(lake) -> None:
    with catalog.connect(lake) as db:
        db.execute("SELECT 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["pairs", "inter_run", "one_run"])
    parser.add_argument("--folder", type=Path, help="where the lakes go meanwhile")
    arguments = parser.parse_args()
    quick, threads = arguments.quick, arguments.threads
    parts = {
        "pairs": lambda folder: pairs(folder, 2_000 if quick else 20_000, threads),
        "inter_run": lambda folder: inter_run(
            folder, [5, 10, 20] if quick else [10, 30, 100], threads
        ),
        "one_run": lambda folder: one_run(folder, 10, 100 if quick else 1_000, threads),
    }
    print(f"duckdb {duckdb.__version__}, numpy {np.__version__}, {threads} threads")
    for name, part in parts.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                part(Path(folder))


if __name__ == "__main__":
    main()
