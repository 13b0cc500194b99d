"""What the commands around a capture cost: `python tests/benchmarks/bench_commands.py`.

Export and import stand beside a plain copy of the same files that is flushed to the disk. Each command runs in a
process of its own, whose CPU time and peak memory are told.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import synthetic
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.report import heatmap

TINY = Shape(
    layers=1,
    steps=2,
    messages=2,
    labels=("joy",),
    activations=False,
    attention=False,
    outputs=False,
)
#: The embedded model's sizes with fewer layers: 654 prompt tokens, 49 decode steps.
CONVERSATION = Shape(
    layers=8, width=576, heads=9, mlp=1536, vocab=49152, prompt_tokens=654, steps=50
)


def measure(warehouse: Path, *args: str) -> tuple[float, float, float]:
    """Wall and CPU seconds and peak megabytes of one command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "warehouse.cli", "-w", str(warehouse), *args]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"alab {' '.join(args)} failed")
    peak = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak


def copy(source: Path, target: Path) -> float:
    """Seconds to copy a directory and flush it to the disk."""
    start = time.perf_counter()
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reader, to.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    return time.perf_counter() - start


def in_real_groups(path: Path, schema, columns: dict, group: int = 64) -> None:
    """Write row groups as large as a capture's."""
    rows = {"activations": 128, "attention": 4096, "outputs": 20}
    write(
        path,
        schema,
        columns,
        next((n for name, n in rows.items() if f"/{name}/" in path.as_posix()), group),
    )


def make_conversation(lake: Lake) -> None:
    synthetic.write = in_real_groups
    make_run(lake, "conversation", CONVERSATION)
    catalog.sync(lake)


write = synthetic.write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        many = Lake(root / "many")
        for seed in range(options.runs):
            make_run(many, f"scenario-{seed % 7}", TINY, seed)
        start = time.perf_counter()
        catalog.sync(many)
        print(
            f"\n**A warehouse of {options.runs} runs**\n\n| command | wall s | CPU s |\n| --- | --- | --- |"
        )
        print(f"| registering all of them | {time.perf_counter() - start:.1f} | |")
        for args in (["--help"], ["runs"], ["du"], ["inspect", "latest"], ["check"]):
            wall, cpu, _ = min(measure(many.warehouse, *args) for _ in range(3))
            print(f"| alab {' '.join(args)} | {wall:.2f} | {cpu:.2f} |")

        big = Lake(root / "big")
        maker = multiprocessing.Process(
            target=make_conversation, args=(big,)
        )  # its memory would count as a child's
        maker.start()
        maker.join()
        (run_id,) = big.run_ids()
        print(
            "\n**A conversation of 654 tokens and 50 steps**\n\n| command | MB | wall s | MB/s | peak MB |"
        )
        print("| --- | --- | --- | --- | --- |")
        for fmt in ("npz", "safetensors", "parquet"):
            wall, _, peak = measure(
                big.warehouse, "export", run_id, "--format", fmt, "-o", str(root / fmt)
            )
            size = sum(p.stat().st_size for p in (root / fmt).rglob("*") if p.is_file()) / 1e6
            print(
                f"| alab export --format {fmt} | {size:.0f} | {wall:.1f} | {size / wall:.0f} | {peak:.0f} |"
            )
        size = sum(p.stat().st_size for p in (root / "npz").rglob("*") if p.is_file()) / 1e6
        wall, _, peak = measure(root / "imported", "import", str(root / "npz"))
        print(f"| alab import | {size:.0f} | {wall:.1f} | {size / wall:.0f} | {peak:.0f} |")
        wall = copy(root / "npz", root / "copied")
        print(f"| copying the npz files, flushed | {size:.0f} | {wall:.1f} | {size / wall:.0f} | |")

        values = np.random.default_rng(0).standard_normal((600, 2048)).astype("f4")
        colours = heatmap.colormap("viridis")
        start = time.perf_counter()
        for _ in range(10):
            heatmap.write_png(root / "a.png", values, *heatmap.limits(values), colours)
        print(f"\nOne heatmap of 600 × 2,048 values: {(time.perf_counter() - start) * 100:.0f} ms.")


if __name__ == "__main__":
    main()
