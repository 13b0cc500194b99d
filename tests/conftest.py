"""Fixtures that several test files share."""

import pytest
import torch
from captures import family
from synthetic import Shape, make_run

from warehouse import catalog, heads, models, sites
from warehouse.lake import Lake
from warehouse.report import write_report


@pytest.fixture
def lake(tmp_path) -> Lake:
    """An empty lake in a temporary warehouse."""
    return Lake(tmp_path / "lab")


@pytest.fixture(scope="session")
def llama() -> tuple[models.Loaded, sites.ModelSites]:
    """A tiny random llama, and what is found in it."""
    return family("llama")


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory) -> tuple[Lake, str, str]:
    """A registered lake with two synthetic runs and their model's head; read only, shared by the whole session."""
    lake = Lake(tmp_path_factory.mktemp("two_runs") / "lab")
    shape = Shape(lens=True, examples=(1, 3))
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


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """A page about one run and one about three, as `(one, three)`."""
    lake = Lake(tmp_path_factory.mktemp("report") / "lab")
    for seed, name in enumerate(("alpha", "beta", "gamma")):
        make_run(lake, name, Shape(layers=4, steps=6, lens=True), seed=seed)
    folder = lake.warehouse
    return write_report(lake, ["latest"], out=folder / "one.html")[0], write_report(lake, out=folder / "three.html")[
        0
    ]
