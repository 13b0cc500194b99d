"""Memory of a capture of many prompts over that of few: `python tests/benchmarks/bench_prompts.py [FEW MANY]`.

A tiny random model reads synthetic prompts of one message, 2,000 and 20,000 of them unless told otherwise, and
keeps the residual stream of each token. Each count is a process of its own; what is measured is its peak over the
loaded model, a first capture of a few prompts, and the scenario, which is there as a whole.
"""

import gc
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CAPTURE = {"qkv": False, "mlp": False, "logits": False, "attention_weights": False}


def memory(name: str) -> int:
    """Bytes of this process, `VmRSS` now or `VmHWM` at its peak."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def worker(count: int) -> None:
    """Capture some prompts; print the seconds and the bytes that it took."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import captures

    from warehouse.capture.conversation import capture_one
    from warehouse.lake.lake import Lake

    def scenario(prompts: int):
        said = [{"role": "user", "content": f"What is number {n} about?"} for n in range(prompts)]
        return captures.make_scenario(
            prompt=[{"messages": [message]} for message in said],
            generation={"max_new_tokens": 1},
            capture=CAPTURE,
            reference_states=[],
        )

    llama = captures.family("llama")
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        capture_one(scenario(100), *llama, lake)
        request = scenario(count)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, start = memory("VmRSS"), time.perf_counter()
        peaks = {}
        capture_one(
            request,
            *llama,
            lake,
            progress=lambda what, *_: peaks.update({what: memory("VmHWM") - before}),
        )
        print(time.perf_counter() - start, peaks["writing"], memory("VmHWM") - before)


def main(few: int, many: int) -> None:
    print("| prompts | seconds | peak over the loaded model | with the catalog's |")
    print("| --- | --- | --- | --- |")
    peaks = []
    for count in (few, many):
        command = [sys.executable, __file__, "--worker", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds, *both = map(float, done.stdout.split())
        peaks.append(both)
        shown = " | ".join(f"{peak / 1e6:.0f} MB" for peak in both)
        print(f"| {count:,} | {seconds:.0f} | {shown} |", flush=True)
    ratios = " | ".join(f"{b / a:.2f}" for a, b in zip(*peaks, strict=True))
    print(f"| ratio, target 1.1 | | {ratios} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(int(sys.argv[2]))
    else:
        main(*map(int, sys.argv[1:] or (2_000, 20_000)))
