"""How torch's threads wait is set before torch is imported, or said to be too late."""

import os
import subprocess
import sys
import warnings

import pytest

import warehouse
from warehouse.capture.threads import WAITING, let_threads_sleep


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in WAITING:
        monkeypatch.setenv(name, "")  # so that what is set here goes again
        monkeypatch.delenv(name)


def test_before_torch_it_is_set(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delitem(sys.modules, "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        let_threads_sleep()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "7")


def test_after_torch_it_is_said_once():
    with pytest.warns(
        UserWarning, match="OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=3000 before Python"
    ):
        _ = warehouse.record
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = warehouse.recording


@pytest.mark.parametrize(
    "first", ["import warehouse.cli.commands", "import warehouse; warehouse.record"]
)
def test_the_command_line_and_python_users_have_it(first):
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    code = f"import os, warnings; warnings.simplefilter('error'); {first}; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "PASSIVE\n", done.stderr
