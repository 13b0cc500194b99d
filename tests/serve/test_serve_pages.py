"""Pages of the server in a real browser: whole, quiet, drawn, legible on a telephone, in the dark."""

import pytest
from browser import chromium, executable
from pages_in_browser import WIDTHS, Visit, served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium on the path"),
]


@pytest.fixture(scope="module")
def service(conversations):
    with served(conversations) as service:
        yield service


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", ["/", "/sql?q=SELECT+1", "/run/latest:talk/residual"])
def test_a_page_is_whole(browser, service, path, width, dark):
    visit = Visit(browser, service, width=width, dark=dark).open(path)
    states = visit.draw()
    assert not states.get("failed") and not states.get("") and visit.problems == []
    assert not visit.overflows()
    assert visit.findings() == []
    visit.page.close()
