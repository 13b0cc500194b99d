"""One query for each of many runs: a plain loop in one process against a local Ray of 1, 2 and 4 workers.

    python tests/benchmarks/bench_scale.py [--runs N] [--repeat N] [--workers 1 2 4]

Synthetic runs of 8 layers, 256 wide, without activations. Each way is timed in turn, in one process, on a Ray that was
started before and has its workers warm; how long the start takes is printed beside it. `--runs 60` shows that it works.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from synthetic_lake import make_lake

QUERY = "FROM intra_run_summary($run)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    from synthetic import Shape

    from warehouse.catalog import catalog

    shape = Shape(layers=8, width=256, messages=4, prompt_tokens=16, activations=False, attention=False, outputs=False)  # fmt: skip
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {arguments.runs} runs"
    )
    with tempfile.TemporaryDirectory() as folder:
        lake = make_lake(Path(folder) / "lab", arguments.runs, shape)
        catalog.sync(lake)
        plain, rows = timed(lake, None, None, arguments.repeat)
        print(
            f"{'plain loop':<14}{plain:8.2f} s   {1e3 * plain / arguments.runs:6.1f} ms a run   {rows} rows"
        )
        for count in arguments.workers:
            took, same = timed(lake, "local", count, arguments.repeat)
            assert same == rows
            ideal = plain / min(count, os.cpu_count() or 1)
            print(f"Ray, {count} worker{'s' * (count > 1):<2}{took:9.2f} s   {1e3 * took / arguments.runs:6.1f} ms a run   "
                  f"× {took / plain:.2f} of the loop, × {took / ideal:.2f} of the ideal")  # fmt: skip


def timed(lake, address, count, repeat) -> tuple[float, int]:
    """Median seconds of a pass over all runs, and how many rows it gave."""
    from warehouse.cluster import queries
    from warehouse.cluster.workers import workers

    began = time.perf_counter()
    with workers(address, count=count) as each:
        if address:
            list(each(abs, range(4 * count)))
            queries.ask_each(lake, QUERY, ["bench0000*"], each)  # workers import what they need
            print(f"  start of Ray and its workers: {time.perf_counter() - began:.1f} s")
        took = []
        for _ in range(repeat):
            began = time.perf_counter()
            table = queries.ask_each(lake, QUERY, [], each)
            took.append(time.perf_counter() - began)
    return statistics.median(took), table.num_rows


if __name__ == "__main__":
    main()
