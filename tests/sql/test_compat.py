"""`compat.py` runs every example in this DuckDB, from the plain library as others would, and names what fails.

`make compat` runs these tests, and all beside them, in other releases of DuckDB than the environment has.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import compat
import duckdb
import pytest

from warehouse.catalog import sqldoc

COMPAT = Path(compat.__file__)
ROOT = COMPAT.parents[2]


@pytest.fixture(scope="module")
def written(two_runs, tmp_path_factory) -> Path:
    """Two runs in a warehouse whose catalog the environment's DuckDB wrote, whichever DuckDB runs this test."""
    folder = tmp_path_factory.mktemp("written") / "lab"
    shutil.copytree(two_runs[0].root, folder / "lake")
    run_plain = "from warehouse.cli.commands import main; main()"
    subprocess.run(
        [sys.executable, "-c", run_plain, "-w", str(folder), "runs"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


def test_every_example_runs_here(written, tmp_path):
    """In a Python that has this DuckDB and, where it is in a folder of its own, nothing but the standard library."""
    done = subprocess.run(
        [sys.executable, "-S", str(COMPAT), str(written)],
        env=os.environ | {"PYTHONPATH": str(Path(duckdb.__file__).parents[1])},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    version, examples = duckdb.__version__, len(compat.examples())
    assert done.stdout == f"duckdb {version}: {examples} examples, 0 failed\n"


def test_every_object_that_can_fail_has_an_example():
    named = {name for name, _ in compat.examples()}
    assert {item.name for item in sqldoc.library() if item.kind != "table"} <= named


def test_failures_are_named(two_runs):
    asked = [
        ("one", "select 1"),
        ("two", "select nonsense"),
        ("three", "select 1 = 2"),
        ("four", "select\n true"),
    ]
    failed = compat.failures(two_runs[0].catalog, asked)
    assert [line.split(":")[0] for line in failed] == ["two", "three"]
    assert failed[1] == "three: is false: select 1 = 2"


def test_what_is_said_of_versions_is_what_make_compat_tries():
    """The README, the page of SQL, the bounds of the package, the pin and the Makefile."""
    makefile, pins = ((ROOT / name).read_text() for name in ("Makefile", "constraints.txt"))
    tried = re.search(r"^DUCKDB \?= (.*)$", makefile, re.MULTILINE)[1].split()
    lines = [".".join(version.split(".")[:2]) for version in tried]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (item for item in project["dependencies"] if item.startswith("duckdb"))
    least = bound.removeprefix("duckdb>=").partition(",")[0]
    assert least in lines
    assert f"\nduckdb=={tried[-1]}\n" in pins
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"DuckDB {least} to {lines[-1]}" in readme
    assert f"command line opens a warehouse from {lines[0]} on" in readme
    assert f"DuckDB {lines[0]} to {lines[-1]} (alab itself needs {least} or newer)" in sqldoc.page()
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or newer" in readme
