"""Shards as tasks of Ray: workers that die, the content of one process, and a worker that lacks something."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny
import yaml

import warehouse
from warehouse.catalog import check
from warehouse.cluster import captures
from warehouse.cluster.workers import alone
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake

SHARDS = 16


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Path:
    """A dataset of 1,200 rows, as large as the airports, and a tiny model in a folder."""
    place = tmp_path_factory.mktemp("airports")
    tiny.model_of("llama").save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    rng = random.Random(0)
    names = [" ".join(rng.choices(["red", "blue", "old", "new", "mill"], k=1 + n % 5)) for n in range(1200)]  # fmt: skip
    lines = [f"a{n},{name},{rng.uniform(24, 50):.3f}" for n, name in enumerate(names)]
    (place / "rows.csv").write_text("code,name,latitude\n" + "\n".join(lines) + "\n")
    data = {
        "name": "places",
        "model": {"id": str(place / "model"), "dtype": "float32", "device": "cpu"},
        "prompt": {"dataset": {"source": "rows.csv", "id": "code", "text": "{{ name }} airport"}},
        "capture": {"positions": ["last", "name", "mean"], "sites": ["hidden_out"]},
    }
    path = place / "places.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def plain(scenario, tmp_path_factory) -> tuple[Lake, str]:
    """What one process gives that follows the same plan."""
    lake = Lake(tmp_path_factory.mktemp("plain") / "lab")
    (run_id,) = captures.capture_files([scenario], lake.warehouse, alone, shards=SHARDS)
    return lake, run_id


def alab(lake: Lake, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "warehouse.cli", "-w", lake.warehouse, *arguments]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # fmt: skip


def hashes(lake: Lake, run_id: str) -> dict[str, str]:
    """The hash of every file of tensors, states and labels, and of the rows about prompts."""
    files = lake.metadata(run_id, "files").to_pylist()
    found = {row["path"]: row["sha256"] for row in files if row["dataset"] != "metadata"}
    for table in ("prompts", "tokens", "positions", "batches", "layers", "sites"):
        found[table] = str(lake.metadata(run_id, table).to_pylist())
    return found


def test_two_of_four_workers_are_killed(scenario, plain, lake):
    running = alab(lake, "capture", scenario, "--ray", "--workers", 4, "--shards", SHARDS)
    killed: set[int] = set()
    deadline = time.monotonic() + 300
    while len(killed) < 2 and running.poll() is None and time.monotonic() < deadline:
        # Those that read a shard just now: the drafts of shards are theirs.
        if len(list(lake.staging.glob("*/shards/.0*"))) >= 2:
            workers = [
                process.pid
                for process in psutil.Process(running.pid).children(recursive=True)
                if process.name().startswith("ray::_call") and process.pid not in killed
            ]
            for pid in workers[: 2 - len(killed)]:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.005)
    out, said = running.communicate(timeout=300)
    assert len(killed) == 2
    assert running.returncode == 0, said
    assert out.split() == [plain[1]] == lake.run_ids()  # the id too is the plan's
    assert hashes(lake, plain[1]) == hashes(*plain)
    assert check.check(lake, deep=True) == []
    assert "shards" in said
    one, other = warehouse.open(plain[0].warehouse), warehouse.open(lake.warehouse)
    for ask in (
        lambda lab: lab.moments("latest", "hidden_out", 2),
        lambda lab: lab.gram("latest", "hidden_out", 2, beside=["latitude"]),
    ):
        a, b = ask(one), ask(other)
        assert a.n == b.n == 1200
        for name in set(a.__dict__) - {"n", "width"}:
            assert abs(getattr(a, name) - getattr(b, name)).max() < 1e-9


def test_a_command_that_is_killed_goes_on(scenario, plain, lake):
    """With everything that it started; what was finished is not done again."""
    running = alab(lake, "capture", scenario, "--ray", "--workers", 2, "--shards", SHARDS, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(lake.staging.glob("*/shards/0*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in [*psutil.Process(running.pid).children(recursive=True), running]:
        os.kill(process.pid, signal.SIGKILL)
    running.communicate()
    there = {path.name: path.stat().st_mtime_ns for path in lake.staging.glob("*/shards/0*")}
    assert 3 <= len(there) < SHARDS
    listed = alab(lake, "runs", "--unfinished", "--format", "json").communicate()[0]
    assert json.loads(listed)[0]["shards"].startswith(f"{len(there)} of {SHARDS}: ")
    ids = list(captures.capture_files([scenario], lake.warehouse, alone, shards=SHARDS))
    assert ids == [plain[1]]
    assert hashes(lake, ids[0]) == hashes(*plain)


def test_no_model_on_a_worker(scenario, lake, tmp_path):
    data = yaml.safe_load(scenario.read_text())
    data["model"]["id"] = str(tmp_path / "gone")
    path = tmp_path / "gone.yaml"
    path.write_text(yaml.safe_dump(data | {"name": "gone"}))
    (tmp_path / "rows.csv").write_text((scenario.parent / "rows.csv").read_text())
    running = alab(lake, "capture", path, "--ray", "--workers", 1, "--shards", 2)
    _, said = running.communicate(timeout=200)
    assert running.returncode != 0
    assert "Traceback" not in said
    assert "gone" in said.partition("error: on ")[2]


def test_a_worker_that_does_not_see_the_warehouse(scenario, lake, monkeypatch):
    def forgetful(function, items):
        import shutil

        shutil.rmtree(lake.warehouse)
        return alone(function, items)

    with pytest.raises(
        AlabError, match=r"no warehouse at .*\nAll workers have to see one directory"
    ):
        list(captures.capture_files([scenario], lake.warehouse, forgetful, shards=2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray", "--shard", "1/2"], "exclude one another"),
        (["--shard", "3/2"], "is no shard"),
        (["--ray", "--shards", "0"], "0 is not in the range"),
        (["--ray", "auto", "--workers", "2"], "has its workers"),
        (["--ray", "auto"], "cannot use the Ray at auto"),
        (["--ray", "--workers", "1", "--gpus-per-worker", "9"], "Ray has no 9 GPUs"),
    ],
)
def test_options_that_make_no_sense(scenario, lake, options, said):
    running = alab(lake, "capture", scenario, *options)
    _, text = running.communicate(timeout=100)
    assert running.returncode in (1, 2)
    assert said in text and "Traceback" not in text
