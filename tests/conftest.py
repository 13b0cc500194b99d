"""Fixtures that several test files share."""

import pytest
import torch
from synthetic import Shape, make_run

from warehouse import catalog, heads
from warehouse.lake import Lake


@pytest.fixture
def lake(tmp_path) -> Lake:
    """An empty lake in a temporary warehouse."""
    return Lake(tmp_path / "lab")


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory) -> tuple[Lake, str, str]:
    """A registered lake with two synthetic runs and their model's head; read only, shared by the whole session."""
    lake = Lake(tmp_path_factory.mktemp("two_runs") / "lab")
    shape = Shape(lens=True)
    ids = make_run(lake, "alpha", shape, seed=1), make_run(lake, "beta", shape, seed=2)
    draw = torch.Generator().manual_seed(0)
    head = heads.Head(
        torch.randn(shape.vocab, shape.width, generator=draw), torch.randn(shape.vocab, generator=draw),
        torch.rand(shape.width, generator=draw), torch.zeros(shape.width), True, 1e-5, 0.5, 30.0,
        tokens=[f"t{i}" for i in range(shape.vocab)], model="package:synthetic",
    )  # fmt: skip
    heads.keep(lake, "package:synthetic", head)
    catalog.sync(lake)
    return lake, *ids
