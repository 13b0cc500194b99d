"""`compat.py` runs every example in this DuckDB, from the plain library as others would, and names what fails."""

import subprocess
import sys
from pathlib import Path

import compat

from warehouse.catalog import sqldoc

COMPAT = Path(compat.__file__)


def test_every_example_runs_here(two_runs, tmp_path):
    done = subprocess.run(
        [sys.executable, str(COMPAT), str(two_runs[0].warehouse)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{len(compat.examples())} examples, 0 failed\n")


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
