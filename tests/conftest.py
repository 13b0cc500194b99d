"""Fixtures that several test files share."""

import pytest
from synthetic import make_run

from warehouse import catalog
from warehouse.lake import Lake


@pytest.fixture
def lake(tmp_path) -> Lake:
    """An empty lake in a temporary warehouse."""
    return Lake(tmp_path / "lab")


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory) -> tuple[Lake, str, str]:
    """A registered lake with two synthetic runs; read only, shared by the whole session."""
    lake = Lake(tmp_path_factory.mktemp("two_runs") / "lab")
    ids = make_run(lake, "alpha", seed=1), make_run(lake, "beta", seed=2)
    catalog.sync(lake)
    return lake, *ids
