"""The pages for people name files that exist, and every room."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/scale.md")
ROOMS = sorted(path.parent.name for path in (ROOT / "warehouse").glob("*/__init__.py"))


def named_files(text: str) -> set[str]:
    """Paths between backticks that end like a file of ours, as the page spells them."""
    names = re.findall(r"`([\w./*-]+\.(?:py|sql|j2|js|json|md))`", text)
    return {name for name in names if "/" in name or name.endswith(".py")}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in named_files(text):
        places = [ROOT, ROOT / "warehouse", *(ROOT / "warehouse" / room for room in ROOMS)]
        places += [ROOT / "tests", ROOT / "tests" / "sql"]
        assert any(list(place.glob(name)) for place in places), f"{page}: no file {name}"


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_a_page_names_every_room(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"{room}/" not in text] == []


def test_the_names_of_files_are_read():
    text = "`lake/store.py` and `reports/charts/*.vl.json`, not `alab sql` or `files.parquet`"
    assert named_files(text) == {"lake/store.py", "reports/charts/*.vl.json"}
