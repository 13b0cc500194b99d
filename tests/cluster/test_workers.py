"""Ray, plain loops, and a Ray that is not there, of another version, or loses its workers."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest
import ray

from warehouse.cluster import queries, workers
from warehouse.errors import AlabError


@pytest.fixture(scope="module")
def cluster():
    """A Ray that this process uses already, which nobody stops."""
    ray.init(
        "local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker finds this file
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def double(item):
    return 2 * item


def named(item):
    raise AlabError(f"nothing at {item}", "Look elsewhere.", 2)


def broken(item):
    raise ZeroDivisionError(item)


def dies(folder):
    """Killed the first two times."""
    tries = len(list(folder.iterdir()))
    (folder / str(tries)).touch()
    if tries < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return tries


def dies_always(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("address", [None, "local"])
def test_a_function_for_each_item(cluster, address):
    with workers.workers(address) as each:
        assert list(workers.in_order(each(double, list(range(50))))) == [2 * n for n in range(50)]
        assert list(each(double, [])) == []
    assert ray.is_initialized()


def test_a_query_of_each_run(cluster, two_runs):
    lake, *runs = two_runs
    with workers.workers("local") as each:
        table = queries.ask_each(lake, "FROM intra_run_summary($run)", [], each)
    alone = queries.ask_each(lake, "FROM intra_run_summary($run)", [], workers.alone)
    assert table.equals(alone) and set(table["run_id"].to_pylist()) == set(runs)


def test_a_worker_that_is_killed(cluster, tmp_path):
    with workers.workers("local") as each:
        assert list(each(dies, [tmp_path])) == [(0, 2)]


def test_a_worker_that_is_killed_each_time(cluster, monkeypatch):
    monkeypatch.setattr(workers, "RETRIES", 1)
    with workers.workers("local") as each, pytest.raises(AlabError, match="a task of Ray was lost"):
        list(each(dies_always, [1]))


def test_errors_of_a_worker(cluster):
    with workers.workers("local") as each:
        with pytest.raises(AlabError, match=r"^on .*: nothing at 7\nLook elsewhere\.$") as error:
            list(each(named, [7]))
        assert error.value.exit_code == 2
        with pytest.raises(ZeroDivisionError):
            list(each(broken, [7]))


def test_a_worker_without_alab(cluster, tmp_path, monkeypatch):
    """As without any module that is here and not there."""
    (tmp_path / "only_here.py").write_text("def function(item): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = import_module("only_here").function
    with workers.workers("local") as each, pytest.raises(AlabError) as error:
        list(each(function, [7]))
    assert error.value.message == "a worker of Ray has no module only_here"


def test_gpus_that_are_not_there(cluster):
    with pytest.raises(AlabError, match="Ray has no 2 GPUs"), workers.workers("local", gpus=2):
        pass


CONNECT = """
import sys
from warehouse.errors import AlabError
from warehouse.cluster.workers import workers
{before}
try:
    with workers(sys.argv[1]) as each:
        found = list(each(abs, [-3]))
    print(found)
except AlabError as error:
    print(error)
"""


def connect(address: str, before: str = "") -> str:
    script = CONNECT.format(before=before)
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True, timeout=100)  # fmt: skip
    return done.stdout


def test_a_ray_at_an_address(cluster):
    assert connect(cluster) == "[(0, 3)]\n"


def test_a_ray_of_another_version(cluster):
    said = connect(cluster, "import ray; ray.__version__ = '1.0.0'")
    assert re.search(r"is of another version: Ray: 2\S+, Python: .*Ray: 1\.0\.0", said)
    assert "Install the same Ray" in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no.such.host.invalid:6379", "nonsense", "x:y:z"])  # fmt: skip
def test_a_ray_that_is_not_there(address):
    began = time.monotonic()
    said = connect(address)
    assert said.startswith(f"there is no Ray at {address}: ") and time.monotonic() - began < 30


def test_no_ray_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AlabError, match=r"--ray needs ray, .*'ray'"), workers.workers("local"):
        pass
