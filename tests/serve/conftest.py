"""Warehouses that the tests of the pages look at, made once."""

import pytest
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
