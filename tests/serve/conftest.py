"""Warehouses that the tests of the pages look at, made once; a server, and the browser that looks."""

import pytest
from browser import chromium
from pages_in_browser import served
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake


@pytest.fixture(scope="session")
def conversations(tmp_path_factory) -> Lake:
    """A lake with two runs of random numbers, of the scenarios `talk` and `other`."""
    lake = Lake(tmp_path_factory.mktemp("serve") / "lab")
    for seed, name in enumerate(("other", "talk")):
        make_run(lake, name, Shape(), seed=seed)
    catalog.sync(lake)
    return lake


@pytest.fixture(scope="module")
def service(conversations):
    """The pages of those runs; a file about another warehouse has its own."""
    with served(conversations) as service:
        yield service


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    with chromium() as browser:
        yield browser
