"""The shell's tab key: what the real command offers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = ("joy_20260101T000000Z", "joy_20260102T000000Z", "calm_20260101T000000Z")


def complete(*words: str, **environment: str) -> list[str]:
    """What bash would be offered for the last of the words."""
    line = " ".join(("alab", *words))
    result = subprocess.run(
        [Path(sys.executable).parent / "alab"], capture_output=True, text=True, check=False,
        env=os.environ | {"_ALAB_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))} | environment,
    )  # fmt: skip
    assert result.stderr == ""
    return [row.partition(",")[2] for row in result.stdout.splitlines() if row]


@pytest.fixture
def lab(tmp_path: Path) -> str:
    for age, run_id in enumerate(RUNS):
        (tmp_path / "lake" / "metadata" / f"run={run_id}").mkdir(parents=True)
        os.utime(tmp_path / "lake" / "metadata" / f"run={run_id}", (age, age))
    return str(tmp_path)


@pytest.mark.parametrize("command", ["inspect", "report", "rm", "export", "heatmap", "logit-lens"])
def test_run_ids_are_offered_newest_first(lab, command):
    assert complete("-w", lab, command, "''") == ["latest", *reversed(RUNS)]


def test_a_prefix_and_the_environment(lab):
    assert complete("inspect", "joy", ALAB_WAREHOUSE=lab) == [RUNS[1], RUNS[0]]


def test_a_run_is_offered_once(lab):
    assert complete("-w", lab, "rm", RUNS[0], "joy") == [RUNS[1]]


def test_no_warehouse_offers_nothing(tmp_path):
    assert complete("-w", str(tmp_path / "none"), "inspect", "''") == []


def test_names_of_the_library():
    assert {"residual_decomposition", "role_average"} <= set(complete("sql", "--describe", "r"))
    assert not complete("sql", "--describe", "_")
