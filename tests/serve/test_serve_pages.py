"""Pages of the server in a real browser: whole, quiet, drawn, legible on a telephone, in the dark."""

import re
from collections import Counter

import pytest
from browser import executable
from pages_in_browser import LOOKS, Visit

from warehouse.assets import asset_dir

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium on the path"),
]


@LOOKS
@pytest.mark.parametrize("path", ["/", "/sql?q=SELECT+1", "/run/latest:talk/residual"])
def test_a_page_is_whole(browser, service, path, width, dark):
    visit = Visit(browser, service, width=width, dark=dark).open(path)
    states = visit.draw()
    assert not states.get("failed") and not states.get("") and visit.problems == []
    assert not visit.overflows()
    assert visit.findings() == []
    visit.page.close()


def test_scripts_share_one_scope_without_taking_names_from_each_other():
    folder = asset_dir("reports")
    names = Counter()
    for path in (folder / "report.js", folder / "tokens.js", *folder.glob("serve/*.js")):
        form = r"^(?:const|let|class|function|async function) (\w+)"
        names.update(re.findall(form, path.read_text("utf-8"), re.MULTILINE))
    assert [name for name, count in names.items() if count > 1] == []
