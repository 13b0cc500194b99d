"""A server over a warehouse, and a browser that looks at its pages and notes what they complain of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from warehouse.lake.lake import Lake
from warehouse.serve.service import Service

#: Widths of a telephone and of a desk, pixels.
WIDTHS = (400, 1280)
#: Each width and each theme once.
LOOKS = pytest.mark.parametrize(
    ("width", "dark"), [(WIDTHS[0], True), (WIDTHS[1], False)], ids=["400-dark", "1280-light"]
)


@contextmanager
def served(lake: Lake) -> Iterator[Service]:
    """The warehouse's pages, on a free port."""
    service = Service(lake, port=0)
    service.start()
    try:
        yield service
    finally:
        service.stop()


class Visit:
    """A browser at a server, signed in.

    Attributes:
        page: Playwright's page.
        problems: console errors and warnings, exceptions, requests to anywhere else, answers of 500.
    """

    def __init__(self, browser, service: Service, *, width: int = 1280, dark: bool = False):
        self.origin = service.address.partition("/?")[0]
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.problems: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.on("request", self._request)
        self.page.on("response", self._response)
        self.page.goto(service.address)

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _request(self, request) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.problems.append(f"request: {request.url}")

    def _response(self, response) -> None:
        if response.status >= 500:
            self.problems.append(f"{response.status}: {response.url}")

    def open(self, path: str) -> "Visit":
        """Go to a page, and wait until nothing more comes."""
        self.page.goto(self.origin + path)
        self.page.wait_for_load_state("networkidle")
        return self

    def draw(self) -> dict[str, int]:
        """Bring every figure into view; how many are drawn, empty or failed."""
        for figure in self.page.locator("figure[data-chart]:visible").all():
            figure.scroll_into_view_if_needed()
            self.page.wait_for_timeout(60)
        self.page.wait_for_load_state("networkidle")
        states = self.page.evaluate(
            "[...document.querySelectorAll('figure[data-chart]')].filter((f) => f.checkVisibility())"
            ".map((f) => f.dataset.state ?? '')"
        )
        return {state: states.count(state) for state in sorted(set(states))}

    def overflows(self) -> bool:
        """Whether the page is wider than the window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )

    def findings(self) -> list[str]:
        """What axe finds that is serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        # The policy of the page forbids scripts that are not its own: axe runs in its own world.
        result = Axe().run(self.page)
        grave = [
            one for one in result.response["violations"] if one["impact"] in ("serious", "critical")
        ]
        return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in grave]

    def picture(self, path: Path) -> None:
        """Take a picture of the whole page."""
        self.page.screenshot(path=path, full_page=True)
