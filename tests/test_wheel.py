"""The wheel carries everything: installed elsewhere, it runs without the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A directory with the installed wheel alone."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("alab-*.whl")
    site = folder / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        capture_output=True,
    )
    return site


def run(installed: Path, cwd: Path, *arguments: str) -> str:
    code = "import sys, warehouse; print(warehouse.__file__, file=sys.stderr); from warehouse.cli.commands import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[0].startswith(str(installed))
    return done.stdout


def test_sql_reports_and_scenarios_travel_in_the_wheel(installed, two_runs, tmp_path):
    lake, *_ = two_runs
    for name in (
        "sql/tables/runs.sql",
        "sql/queries/register.sql",
        "reports/charts",
        "scenarios/quickstart.yaml",
        "scenarios/sentiment.yaml",
        "scenarios/sentiment.csv",
    ):
        assert (installed / "warehouse" / "_assets" / name).exists()
    assert not (installed / "tests").exists()
    assert (installed / "warehouse" / "py.typed").exists()
    warehouse = ("-w", str(lake.warehouse))
    assert "snapshot_reference" in run(installed, tmp_path, *warehouse, "sql", "--list")
    page = tmp_path / "page.html"
    run(installed, tmp_path, *warehouse, "report", "--out", str(page))
    assert page.stat().st_size > 100_000
