"""Shards as tasks of Ray: workers that die, the content of one process, and a worker that lacks something."""

import json
import os
import random
import re
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
from warehouse.catalog import check, removal
from warehouse.cluster import captures
from warehouse.cluster.workers import alone
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lake.manifest import sha256

SHARDS = 16


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Path:
    """A dataset of 1,200 rows, as large as the airports, and a tiny model in a folder."""
    place = tmp_path_factory.mktemp("airports")
    tiny.model_of("llama").save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    rng = random.Random(0)
    # None begins like another: whether trees are faster is measured, and two captures may choose differently.
    names = [" ".join([rng.randbytes(3).hex(), *["mill"] * (n % 5)]) for n in range(1200)]
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


#: Reads every shard in one process, with the threads that Ray gives a worker: they too decide the last bits.
IN_ONE = """
import sys
from pathlib import Path
from warehouse.cluster import captures
from warehouse.cluster.workers import alone
print(*captures.capture_files([Path(sys.argv[1])], Path(sys.argv[2]), alone, shards=int(sys.argv[3])))
"""


def in_one(scenario: Path, lake: Lake) -> str:
    """Capture every shard in one process; gives the run's id."""
    command = [sys.executable, "-c", IN_ONE, scenario, lake.warehouse, SHARDS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.check_output(list(map(str, command)), env=environment, text=True).strip()


@pytest.fixture(scope="module")
def plain(scenario, tmp_path_factory) -> tuple[Lake, str]:
    """What one process gives that follows the same plan."""
    lake = Lake(tmp_path_factory.mktemp("plain") / "lab")
    return lake, in_one(scenario, lake)


def alab(lake: Lake, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "warehouse.cli", "-w", lake.warehouse, *arguments]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # fmt: skip


def hashes(lake: Lake, run_id: str) -> dict[str, str]:
    """The hash of every file of tensors, states and labels, and the rows about prompts.

    `batch_error` is left out: how far prompts read alone are from the same read together is measured on a few, and
    differs in the last bits from one process to another, as a large model's single row does.
    """
    rows = lake.metadata(run_id, "files").to_pylist()
    files = [row["path"] for row in rows if row["dataset"] != "metadata"]
    # At a URL the names of data end with what no other machine writes.
    found = {re.sub(r"\.[0-9a-f]{8}(?=\.)", "", path): sha256(lake.file(path)) for path in files}
    assert any(name.startswith("activations") for name in found)
    for table in ("prompts", "tokens", "positions", "batches", "layers", "sites"):
        rows = lake.metadata(run_id, table)
        found[table] = str(rows.drop_columns([c for c in rows.column_names if c == "batch_error"]).to_pylist())  # fmt: skip
    return found


def kill_two(scenario: Path, lake: Lake) -> str:
    """Capture on four workers, of which two are killed while they read; gives the run's id."""
    running = alab(lake, "capture", scenario, "--ray", "--workers", 4, "--shards", SHARDS)
    killed: set[int] = set()
    deadline = time.monotonic() + 600
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
    out, said = running.communicate(timeout=1200)
    assert len(killed) == 2
    assert running.returncode == 0, said
    assert "shards" in said
    (run_id,) = out.split()
    return run_id


def compare(
    plain: tuple[Lake, str], lake: Lake, run_id: str, layer: int, label: str, rows: int
) -> None:
    """A run is that of one process, to the byte; so are its sums."""
    assert run_id == plain[1]  # the id too is the plan's
    assert lake.run_ids() == [run_id] and check.check(lake, deep=True) == []
    assert hashes(lake, run_id) == hashes(*plain)
    for ask in (
        lambda lab: lab.moments("latest", "hidden_out", layer),
        lambda lab: lab.gram("latest", "hidden_out", layer, beside=[label]),
    ):
        a, b = (ask(warehouse.open(one.warehouse)) for one in (plain[0], lake))
        assert a.n == b.n >= rows
        for name in set(a.__dict__) - {"n", "width"}:
            assert abs(getattr(a, name) - getattr(b, name)).max() < 1e-9


def test_two_of_four_workers_are_killed(scenario, plain, lake):
    compare(plain, lake, kill_two(scenario, lake), 2, "latitude", 1200)


def test_workers_and_a_bucket(scenario, plain, url):
    """What a worker reads is sent by itself, and published with what the others sent."""
    lake = Lake(url)
    running = alab(lake, "capture", scenario, "--ray", "--workers", 2, "--shards", SHARDS)
    out, said = running.communicate(timeout=600)
    assert running.returncode == 0, said
    compare(plain, lake, out.strip(), 2, "latitude", 1200)


#: Airports to read: 320 take two minutes and a half, all 3,061 ten.
AIRPORTS = int(os.environ.get("ALAB_AIRPORTS", "0"))


@pytest.mark.soak
@pytest.mark.embedded
@pytest.mark.skipif(
    not AIRPORTS,
    reason="ALAB_AIRPORTS=3061 says how many; the test above has 1,200 rows of a tiny model",
)
def test_airports_on_the_embedded_model(lake, tmp_path):
    data = yaml.safe_load((Path(__file__).parents[2] / "scenarios" / "airports.yaml").read_text())
    data["prompt"]["dataset"]["query"] += f" limit {AIRPORTS}"
    scenario, one = tmp_path / "airports.yaml", Lake(tmp_path / "one")
    scenario.write_text(yaml.safe_dump(data))
    compare((one, in_one(scenario, one)), lake, kill_two(scenario, lake), 20, "latitude", AIRPORTS)


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
    assert in_one(scenario, lake) == plain[1]
    assert hashes(lake, plain[1]) == hashes(*plain)


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


def test_a_folder_given_once_more_is_not_read_twice(scenario, lake, tmp_path):
    model = {"id": str(scenario.parent / "model"), "dtype": "float32", "device": "cpu"}
    for name in ("one", "two"):
        asked = {"name": name, "model": model, "prompt": {"text": f"{name} mill"}}
        asked["generation"] = {"max_new_tokens": 1}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(asked))

    def read(*paths):
        return list(captures.capture_files(paths, lake.warehouse, alone, shards=2))

    first = read(tmp_path)
    assert len(first) == 2 and read(tmp_path) == first == sorted(lake.run_ids())
    assert len(read(tmp_path / "one.yaml")) == 1  # one that is named is asked for again
    assert len(lake.run_ids()) == 3


def test_a_worker_that_follows_one_that_died_does_not_do_again_what_that_did(
    scenario, lake, tmp_path
):
    model = {"id": str(scenario.parent / "model"), "dtype": "float32", "device": "cpu"}
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    asked = {"name": "each", "model": model, "generation": {"max_new_tokens": 1}}
    asked["prompt"] = {"run_at_each_message": True, "messages": turns}
    (tmp_path / "each.yaml").write_text(yaml.safe_dump(asked))

    def dying(function, items):
        for place, item in enumerate(items):
            first = function(item)
            removal.remove(lake, first[1:])  # it died before the last was there
            yield place, function(item)
            assert function(item)[0] == first[0]

    ids = list(captures.capture_files([tmp_path / "each.yaml"], lake.warehouse, dying, shards=2))
    assert len(ids) == 2 and lake.run_ids() == sorted(ids)


def test_who_interrupts_is_told_what_is_kept(scenario, lake):
    def interrupted(function, items):
        yield from alone(function, items[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        list(captures.capture_files([scenario], lake.warehouse, interrupted, shards=SHARDS))
    assert caught.value.__notes__ == ["what was finished is kept: give the same command once more"]
    ((run_id, _),) = lake.unfinished().items()
    assert lake.missing(run_id, lake.unfinished()[run_id]) == list(range(2, SHARDS + 1))
    assert check.check(lake) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray", "--shard", "1/2"], "exclude one another"),
        (["--shard", "3/2"], "is no shard"),
        (["--shard", ""], "is no shard"),  # a variable of a shell that is not set
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
