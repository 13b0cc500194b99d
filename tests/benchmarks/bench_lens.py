"""What the logit lens costs beside its matrix products alone: `python tests/benchmarks/bench_lens.py`.

The run of `scenarios/emotions.yaml` on the embedded model, every step, last position. The lens reads the residual
streams from the lake, multiplies, and gives top tokens, log-probabilities, KL and ranks as the rows that it writes;
the bare products multiply the same streams, in memory already, by the same unembedding. The two take turns.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from warehouse.catalog.runs import open_run
from warehouse.lake.lake import Lake
from warehouse.lens import lens, store
from warehouse.lens.streams import residual_streams

SCENARIO = Path(__file__).parents[2] / "scenarios" / "emotions.yaml"


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--warehouse",
        type=Path,
        help="one whose latest run is of the scenario; else it is captured",
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(options.warehouse or folder)
        if options.warehouse is None:
            from warehouse.capture.runs import capture_files

            list(capture_files([SCENARIO], lake.warehouse))
        first = seconds(lambda: lens.logit_lens(lake, "latest"))
        again = min(seconds(lambda: lens.logit_lens(lake, "latest")) for _ in range(3))
        with open_run(lake, "latest") as run:
            (row,) = run.rows("runs")
            loading = min(seconds(lambda: store.load(lake, row["model_id"])) for _ in range(3))
            head = store.load(lake, row["model_id"])
            places = lens.places_of(run, None, "last")
            width = head.unembedding.shape[1]
            streams = residual_streams(
                run.db, run.run_id, "hidden_out", run.layers(), places, width
            )
            rows = head.normed(streams.reshape(-1, streams.shape[-1]))
            product = torch.empty(len(rows), len(head.unembedding))
            bare, whole, reading = [], [], []
            for _ in range(options.rounds):
                bare.append(seconds(lambda: torch.mm(rows, head.unembedding.T, out=product)))
                whole.append(
                    seconds(lambda: list(lens.tables(run, head, places, "hidden_out", 10)))
                )
                reading.append(seconds(lambda: residual_streams(
                    run.db, run.run_id, "hidden_out", run.layers(), places, width)))  # fmt: skip
    ratios = sorted(a / b for a, b in zip(whole, bare, strict=True))
    print(
        f"\n**Logit lens of {len(places)} tokens × {streams.shape[1]} layers, {len(head.unembedding)} tokens to choose**\n"
    )
    print("| | s |\n| --- | --- |")
    print(f"| bare matrix products | {min(bare):.2f} |")
    print(f"| the lens, from the lake to its rows | {min(whole):.2f} |")
    print(f"| of that, reading the lake | {min(reading):.2f} |")
    print(f"| ratio, median of the rounds | {ratios[len(ratios) // 2]:.2f} |")
    print(f"| reading the kept unembedding | {loading:.2f} |")
    print(f"| the whole call | {again:.2f} |")
    print(f"| the first call, which loads the model | {first:.2f} |")


if __name__ == "__main__":
    main()
