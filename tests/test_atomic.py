"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from warehouse.atomic import writing
from warehouse.errors import AlabError


@pytest.mark.parametrize(
    "quiet", [False, True], ids=["this Python", "a Python that resolves circles"]
)
@pytest.mark.parametrize("below", ["", "out.csv"], ids=["the link", "below it"])
def test_links_that_go_round_in_a_circle(tmp_path, monkeypatch, quiet, below):
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to(other)
    other.symlink_to(one)
    if quiet:  # as of 3.13
        monkeypatch.setattr(
            Path, "resolve", lambda path, strict=False: Path(os.path.realpath(path))
        )
    with (
        pytest.raises(AlabError, match="go round in a circle"),
        writing(one / below, "-o") as draft,
    ):
        draft.write_text("x")
    assert sorted(tmp_path.iterdir()) == [one, other]
    assert one.is_symlink() and other.is_symlink()


def test_a_link_to_nothing_gets_a_file_at_its_end(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "out.csv")
    with writing(tmp_path / "link", "-o") as draft:
        draft.write_text("x")
    assert (tmp_path / "new" / "out.csv").read_text() == "x"
