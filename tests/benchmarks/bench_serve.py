"""What a reader of `alab serve` waits for: `python tests/benchmarks/bench_serve.py`, in Chromium.

After a warm start: until the first paint and until the content is there, of the runs' list over 1,000 runs and of
a conversation of 20 messages; until a token that is pointed at is told of; until a layer's colours are there. Then ten
clients look around for a minute, each half a second at what it got, in a server that is a process of its own.
`--quick` takes fewer runs, and less time.
"""

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
import psutil
from asker import Asker
from browser import chromium
from pages_in_browser import Visit, served
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

#: One of the README's size: 20 messages, 30 layers of width 576.
TALK = Shape(
    layers=30, width=576, heads=9, mlp=64, vocab=400, messages=20, prompt_tokens=560, steps=40,
    attention=False, lens=True, sites=("hidden_out", "attn_out", "mlp_down_out"),
)  # fmt: skip
SMALL = Shape(
    layers=1, width=4, heads=1, mlp=4, messages=2, prompt_tokens=6, steps=2, attention=False
)
REPEAT = 7
#: Milliseconds since the navigation began at which a selector was there and painted.
THERE = """(selector) => new Promise((done) => {
  const look = () => (document.querySelector(selector) ? requestAnimationFrame(() => done(performance.now())) : requestAnimationFrame(look));
  look();
})"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN"


def row(what: str, times: list[float]) -> None:
    print(f"| {what} | {statistics.median(times):.0f} | {max(times):.0f} |")


def opened(visit: Visit, path: str, selector: str) -> tuple[float, float]:
    """Milliseconds until the first paint of a page, and until what it is about is there."""
    visit.page.goto(visit.origin + path, wait_until="commit")
    there = visit.page.evaluate(THERE, selector)
    visit.page.wait_for_load_state("networkidle")
    return visit.page.evaluate(PAINT), there


def page(visit: Visit, what: str, path: str, selector: str) -> None:
    """How long a page takes; the first look, which warms it, does not count."""
    times = [opened(visit, path, selector) for _ in range(REPEAT + 1)][1:]
    row(f"{what}: first paint", [paint for paint, _ in times])
    row(f"{what}: content", [there for _, there in times])


def hover(visit: Visit) -> None:
    """From the pointer's move to the frame in which the token is told of."""
    times = visit.page.evaluate(
        """async () => {
          const times = [];
          for (const token of [...document.querySelectorAll('#conversation [role="option"]')].slice(0, 60)) {
            const from = performance.now();
            token.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
            await new Promise(requestAnimationFrame);
            times.push(performance.now() - from);
          }
          return times;
        }"""
    )
    row("a token that is pointed at", times)


def asked(visit: Visit, what: str, address: Callable[[int], str]) -> None:
    """How long the server takes to answer; each time something else is asked for."""
    times = []
    for number in range(REPEAT + 1):
        begin = time.perf_counter()
        answer = visit.page.request.get(visit.origin + address(number))
        answer.body()
        times.append(1000 * (time.perf_counter() - begin))
        if not answer.ok:
            raise SystemExit(f"{address(number)}: {answer.status} {answer.text()[:200]}")
    row(what, times[1:])


def wander(asker: Asker, run: str, seed: int, end: float) -> list[float]:
    """Look at pages and data as a reader does, until it is time; gives the milliseconds of each."""
    rng, times = random.Random(seed), []
    while time.monotonic() < end:
        layer = rng.randrange(TALK.layers)
        path = rng.choice([
            "/", f"/?q=run{rng.randrange(900)}", "/sql", "/compare", f"/run/{run}/tokens", f"/run/{run}/residual",
            f"/run/{run}/lens", f"/data/token_norm?run={run}&site=hidden_out&layer={layer}",
            f"/data/token_neuron?run={run}&site=hidden_out&layer={layer}&neuron={rng.randrange(576)}",
            f"/data/residual_pass?run={run}&step={rng.randrange(TALK.steps)}",
        ])  # fmt: skip
        begin = time.perf_counter()
        answer = asker.get(path, Cookie=asker.cookie, Accept="text/html")
        times.append(1000 * (time.perf_counter() - begin))
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {answer.body[:200]!r}")
        time.sleep(0.5)
    return times


class Address:
    """Where a server is, for `Asker`."""

    def __init__(self, address: str):
        self.address = address


def crowd(lake: Lake, run: str, seconds: float) -> None:
    """Ten clients at once; then what the server and its workers hold."""
    command = [sys.executable, "-m", "warehouse.cli", "-w", lake.warehouse, "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = Address(process.stdout.readline().strip())
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(10) as pool:
            some = [pool.submit(wander, Asker(address), run, seed, end) for seed in range(10)]
            times = [one for future in some for one in future.result()]
        server = psutil.Process(process.pid)
        own = server.memory_info().rss
        others = sum(child.memory_info().rss for child in server.children(recursive=True))
        process.send_signal(signal.SIGINT)
    late = statistics.quantiles(times, n=20)[-1]
    print(
        f"| ten clients, {len(times)} answers: median, the 95th of a hundred | {statistics.median(times):.0f} | {late:.0f} |"
    )
    print(f"| memory of the server; of its workers, MB | {own / 1e6:.0f} | {others / 1e6:.0f} |")


def main() -> None:
    """Make the runs, serve them, look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    runs = 100 if quick else 1000
    with tempfile.TemporaryDirectory(prefix="alab-bench-") as folder:
        lake = Lake(Path(folder) / "lab")
        for number in range(runs - 1):
            make_run(lake, f"run{number}", SMALL, seed=number)
        talk = make_run(lake, "talk", TALK)
        catalog.sync(lake)
        colours = f"/data/token_norm?run={talk}&site=hidden_out&layer="
        with served(lake) as service, chromium() as browser:
            visit = Visit(browser, service)
            print("| what | median, ms | most, ms |\n| --- | --- | --- |")
            page(visit, f"/ over {runs} runs", "/", "#runs tbody tr")
            tokens = "20 messages as tokens"
            page(visit, tokens, f"/run/{talk}/tokens", "#token-0:not(.none)")
            hover(visit)
            asked(visit, "colours of a layer", lambda number: f"{colours}{number}")
        crowd(lake, talk, 10 if quick else 60)


if __name__ == "__main__":
    main()
