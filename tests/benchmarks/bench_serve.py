"""What a reader of `alab serve` waits for: `python tests/benchmarks/bench_serve.py`, in Chromium.

After a warm start: until the first paint and until the content is there, of the runs' list over 1,000 runs and of
a conversation of 20 messages; until a token that is pointed at is told of; until a layer's colours are there.
`--quick` takes fewer runs.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
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


def main() -> None:
    """Make the runs, serve them, look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    runs = 100 if parser.parse_args().quick else 1000
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


if __name__ == "__main__":
    main()
