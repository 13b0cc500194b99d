"""Opens a report in headless Chromium, and says what went wrong there.

`python tests/browser.py REPORT.html PICTURE.png` takes the README's picture of a report.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def executable() -> str | None:
    """Path of a Chromium: `$CHROMIUM`, else one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


ALL_DRAWN = "[...document.querySelectorAll('figure[data-chart]')].every((f) => f.dataset.state || !f.checkVisibility())"
SCROLL_THROUGH = """async () => {
  for (const figure of document.querySelectorAll('figure[data-chart]:not([data-state])')) {
    figure.scrollIntoView({block: 'center'});
    await new Promise((done) => setTimeout(done, 40));
  }
}"""


class Tab:
    """One page that is open, with everything it complained about.

    Attributes:
        page: Playwright's page.
        problems: console errors, exceptions, and requests to anything but the file itself.
    """

    def __init__(self, page, path: Path):
        self.page = page
        self.problems: list[str] = []
        page.on(
            "console",
            lambda m: (
                m.type in ("error", "warning") and self.problems.append(f"{m.type}: {m.text}")
            ),
        )
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on(
            "request",
            lambda r: r.url.startswith("file:") or self.problems.append(f"request: {r.url}"),
        )
        page.goto(path.as_uri())

    def draw_all(self, open_folds: bool = True) -> dict[str, int]:
        """Bring every figure into view; gives how many figures are in each state."""
        if open_folds:
            for _ in range(2):  # cards first, then the folds that they bring
                self.page.evaluate(
                    "document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"
                )
                self.wait()
        deadline = time.monotonic() + 120
        while not self.page.evaluate(
            ALL_DRAWN
        ):  # a page that is busy paints no frame for some places on the way
            if time.monotonic() > deadline:
                raise TimeoutError(f"figures were not drawn: {self.states()}")
            self.page.evaluate(SCROLL_THROUGH)
        return self.states()

    def states(self) -> dict[str, int]:
        """How many figures are drawn, empty or failed, or not seen yet (an empty name)."""
        states = self.page.evaluate(
            "[...document.querySelectorAll('figure[data-chart]')].map((f) => f.dataset.state ?? '')"
        )
        return {state: states.count(state) for state in sorted(set(states))}

    def until(self, expression: str, seconds: float = 120) -> None:
        """Wait until an expression holds; the page forbids the evaluation that Playwright waits with."""
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def wait(self) -> None:
        """Let charts that are being drawn finish."""
        self.page.wait_for_timeout(250)


@contextmanager
def chromium() -> Iterator:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGS)
        yield browser
        browser.close()


def picture(report: Path, target: Path) -> None:
    """Take the first screen of a report, as a PNG of few colours."""
    from PIL import Image

    with chromium() as browser:
        tab = Tab(browser.new_page(viewport={"width": 1280, "height": 1500}), report)
        tab.page.wait_for_timeout(1500)
        tab.page.screenshot(path=target)
    Image.open(target).convert("RGB").quantize(200).save(target, optimize=True)


if __name__ == "__main__":
    picture(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
