"""Measures the scalar macros over many pairs against numpy, in turn within one run.

python tests/benchmarks/bench_vector.py [--pairs 4000] [--width 2048]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from bench_sql import cosine, jaccard, mae

from warehouse.catalog import sqldoc

ROUNDS = 3


def vectors(pairs: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays (pairs, width) that share a common part, as last-token states do."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(width) * np.exp(1.2 * rng.standard_normal(width))
    a, b = common + 0.7 * rng.standard_normal((2, pairs, width))
    return a.astype("f4"), b.astype("f4")


def connect(a: np.ndarray, b: np.ndarray) -> duckdb.DuckDBPyConnection:
    """A database with the macros and a table `pairs(id, a, b)`."""
    db = duckdb.connect(config={"threads": 1})
    for item in sqldoc.library():
        if item.file in ("macros/vector.sql", "views/pairs.sql", "analyses/pairs.sql"):
            db.execute(item.statement)
    lists = [
        pa.ListArray.from_arrays(np.arange(len(x) + 1) * x.shape[1], pa.array(x.reshape(-1)))
        for x in (a, b)
    ]
    db.register("arrow", pa.table({"id": np.arange(len(a)), "a": lists[0], "b": lists[1]}))
    db.execute("CREATE TABLE pairs AS FROM arrow")
    return db


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--width", type=int, default=2048)
    arguments = parser.parse_args()
    a, b = vectors(arguments.pairs, arguments.width)
    db = connect(a, b)
    ways: dict[str, Callable] = {
        "numpy": lambda: [
            f(x, y) for x, y in zip(a, b, strict=True) for f in (cosine, mae, jaccard)
        ],
        "`cosine`": lambda: db.execute("SELECT sum(cosine(a, b)) FROM pairs").fetchall(),
        "`mae`": lambda: db.execute("SELECT sum(mae(a, b)) FROM pairs").fetchall(),
        "`top_jaccard`": lambda: db.execute("SELECT sum(top_jaccard(a, b)) FROM pairs").fetchall(),
        "`compare_pairs`": lambda: db.execute(
            "SELECT count(jaccard) FROM compare_pairs('pairs')"
        ).fetchall(),
    }
    took = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            took[name] = min(took[name], time.perf_counter() - start)
    took["the three macros"] = sum(took[name] for name in ("`cosine`", "`mae`", "`top_jaccard`"))
    print(
        f"duckdb {duckdb.__version__}, numpy {np.__version__}, 1 thread, {arguments.pairs} pairs of {arguments.width}\n"
    )
    print("| way | µs a pair | over numpy |\n| --- | ---: | ---: |")
    for name, seconds in took.items():
        print(f"| {name} | {seconds / arguments.pairs * 1e6:.1f} | {seconds / took['numpy']:.2f} |")


if __name__ == "__main__":
    main()
