"""Fixtures that several test files share."""

# First, as in `alab` itself: how torch's threads wait is read when torch is imported. Threads that spin cost tests of
# tiny models 2.5 times the processor time on a machine that others use too.
from warehouse.capture.threads import let_threads_sleep  # isort: skip

let_threads_sleep()

from functools import partialmethod

import pytest
import torch
from captures import family
from cpu_time import CpuTime
from ready_catalog import FROM_NOTHING, Ready
from s3_server import s3, url  # noqa: F401  fixtures
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.lens import head as heads
from warehouse.lens import store
from warehouse.models import loading as models
from warehouse.models import sites
from warehouse.report.write import write_report

#: What belongs to `make test` alone: files that take seconds, or start many processes; `make quick` leaves them out.
SLOW = (
    "test_activations", "test_adapters", "test_api", "test_attended", "test_compat", "test_report_charts",
    "test_references", "test_batch", "test_batches", "test_capture", "test_capture_choice",
    "test_capture_stopped", "test_catalog", "test_check", "test_cli", "test_conversations", "test_datasets", "test_dequantise",
    "test_end_to_end", "test_ending", "test_export", "test_families", "test_fingerprint", "test_reader", "test_heatmap",
    "test_hooks", "test_import", "test_import_arrays", "test_lens", "test_lens_by_content", "test_library",
    "test_many_prompts", "test_matrix", "test_older_warehouse", "test_passes", "test_places", "test_run", "test_readonly", "test_recording", "test_reliability",
    "test_advice", "test_aggregates", "test_answers", "test_dataset_asked", "test_map", "test_blocks", "test_captures", "test_dataset_resume", "test_dataset_run", "test_jobs", "test_progress_lines", "test_report", "test_report_datasets", "test_report_findings", "test_report_in_browser", "test_shards", "test_shards_url", "test_url", "test_url_commands", "test_url_requests", "test_weights", "test_wheel", "test_workers",
)  # fmt: skip
#: Files that compare computations of a tiny model with each other, whatever the number of threads; a second one costs
#: as much as the first and brings nothing. Captures take a core from the model, so their tests keep all threads.
ONE_THREAD = ("test_reader",)


def pytest_configure(config: pytest.Config) -> None:
    """Count processor time."""
    config.pluginmanager.register(CpuTime())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make quick` leaves out, and put their files first."""
    for item in items:
        if item.path.stem in SLOW or any(
            item.get_closest_marker(name) for name in ("embedded", "browser", "soak")
        ):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def ready_catalog(tmp_path_factory) -> Ready:
    """What new catalogs begin with; made by the first test that needs one."""
    return Ready(tmp_path_factory.mktemp("ready"))


@pytest.fixture(autouse=True, scope="module")
def new_catalogs_are_ready(request, ready_catalog):
    """Begin every new catalog with the SQL library in it, but for tests about how it gets there."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] not in FROM_NOTHING:
            patch.setattr(catalog.Catalog, "open", partialmethod(ready_catalog))
        yield


@pytest.fixture(autouse=True, scope="module")
def threads(request):
    """Compute on one thread where more bring nothing."""
    before = torch.get_num_threads()
    if request.module.__name__.rpartition(".")[2] in ONE_THREAD:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lake(tmp_path) -> Lake:
    """An empty lake in a temporary warehouse."""
    return Lake(tmp_path / "lab")


@pytest.fixture(scope="session")
def llama() -> tuple[models.Loaded, sites.ModelSites]:
    """A tiny random llama, and what is found in it."""
    return family("llama")


@pytest.fixture(scope="session")
def batched(llama) -> tuple[models.Loaded, sites.ModelSites]:
    """The same llama, and what is found in it that reads batches."""
    return llama[0], sites.discover(llama[0].model, sharing=False, batches=True)


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
    store.save(lake, "package:synthetic", head)
    catalog.sync(lake)
    return lake, *ids


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """A page about one run and one about three, as `(one, three)`."""
    lake = Lake(tmp_path_factory.mktemp("report") / "lab")
    for seed, name in enumerate(("alpha", "beta", "gamma")):
        make_run(lake, name, Shape(layers=4, steps=6, lens=True), seed=seed)
    folder = lake.warehouse
    return write_report(lake, ["latest"], out=folder / "one.html")[0], write_report(
        lake, out=folder / "three.html"
    )[0]
