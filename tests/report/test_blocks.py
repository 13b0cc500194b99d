"""Runs compared block by block are compared as all at once."""

from itertools import combinations

import pytest
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.cluster.workers import alone, workers
from warehouse.lake.lake import Lake
from warehouse.report import pairs
from warehouse.report.write import write_report

SMALL = Shape(layers=2, width=8, messages=2, activations=False, attention=False, outputs=False)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9, 10, 26, 100, 127])
def test_any_two_are_together_once(count):
    found = [pair for block in pairs.blocks(list(range(count))) for pair in combinations(block, 2)]
    assert sorted(tuple(sorted(pair)) for pair in found) == list(combinations(range(count), 2))


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("many") / "lab")
    for n in range(11):
        make_run(lake, f"run{n}", SMALL, seed=n)
    make_run(lake, "other", Shape(layers=3, width=8, activations=False, attention=False))
    catalog.sync(lake)
    return lake


def csv(lake: Lake, folder, **options) -> dict[str, str]:
    write_report(lake, out=folder / "page.html", csv_dir=folder / "csv", **options)
    return {path.name: path.read_text() for path in (folder / "csv").iterdir()}


def test_in_blocks(lake, tmp_path, monkeypatch):
    whole = csv(lake, tmp_path / "whole")
    assert len(whole["comparison_cosines.csv"].splitlines()) == 1 + 55 * 2 * 4 * 2
    assert csv(lake, tmp_path / "alone", each=alone) == whole
    with workers("local", count=2) as each:
        assert csv(lake, tmp_path / "ray", each=each) == whole
    monkeypatch.setattr(pairs, "MANY", 12)
    monkeypatch.setattr(pairs.Tables, "share", only_without_runs(pairs.Tables.share))
    assert csv(lake, tmp_path / "many") == whole


def only_without_runs(share):
    """Refuse to compare more than one run at once, as where there are many."""

    def checked(self, name, **values):
        assert name != "pair_rows" or len(values["runs"]) == 1
        share(self, name, **values)

    return checked
