"""Datasets from the command line: captured, stopped, gone on with, listed and deleted."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import yaml
from click.testing import CliRunner, Result

import warehouse
from warehouse.cli.commands import main
from warehouse.lake.lake import Lake

ALAB = Path(sys.executable).with_name("alab")
WORDS = "red blue green black white brown grey pink".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, tables and a scenario that reads one of them."""
    place = tmp_path_factory.mktemp("datasets")
    tiny.model_of("llama").save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    return place


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path / "lab")


def scenario(lake: Lake, place: Path, rows: int = 60, **keys) -> Path:
    """A scenario's file, beside its table."""
    folder = lake.warehouse.parent
    rng = random.Random(rows)
    lines = [f"r{n},{' '.join(rng.choices(WORDS, k=1 + n % 6))},{n % 5}" for n in range(rows)]
    (folder / "rows.csv").write_text("key,words,kind\n" + "\n".join(lines) + "\n")
    dataset = {"source": "rows.csv", "id": "key", "text": "I see {{ words }}.", "group": "kind"}
    data = {
        "name": "colours",
        "model": {"id": str(place / "model"), "dtype": "float32", "device": "cpu"},
        "prompt": {"dataset": dataset | keys.pop("dataset", {})},
        "capture": {"positions": ["last", "words"], "sites": ["hidden_out"]} | keys,
    }
    path = folder / "colours.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def alab(lake: Lake, *arguments: object) -> Result:
    done = CliRunner().invoke(main, ["-w", str(lake.warehouse), *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    done.exception = done.exc_info = None
    return done


def unfinished(lake: Lake) -> list[str]:
    listed = alab(lake, "runs", "--unfinished", "--format", "json")
    return [row["run_id"] for row in json.loads(listed.stdout)]


def stop(monkeypatch, lake: Lake, path: Path, at: str) -> None:
    """Capture, and be interrupted in a function."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(at, interrupted)
        assert alab(lake, "capture", path).exit_code == 130


SHARD = "warehouse.lake.staging.Shard.finish"


def test_a_capture_that_was_stopped_goes_on(lake, place, monkeypatch):
    path = scenario(lake, place)
    stop(monkeypatch, lake, path, SHARD)
    (run_id,) = unfinished(lake)
    for command in ("runs", "du", "check", "rebuild", ("sql", "from runs"), ("check", "--fix")):
        alab(lake, *([command] if isinstance(command, str) else command))
        assert unfinished(lake) == [run_id]
    done = alab(lake, "capture", path, "--resume")
    assert (done.exit_code, done.stdout.split()) == (0, [run_id])
    assert unfinished(lake) == []
    assert alab(lake, "check", "--deep").exit_code == 0
    done = alab(lake, "capture", path, "--resume")
    assert done.exit_code == 1 and "no capture of colours to go on with" in done.stderr
    vectors, labels = warehouse.open(lake.warehouse).matrix("latest", "hidden_out", 1, "words")
    assert len(vectors) == 60
    assert labels["key"].to_pylist() == [f"r{n}" for n in range(60)]


def test_what_changed_meanwhile_is_refused(lake, place, monkeypatch, tmp_path):
    path = scenario(lake, place)
    stop(monkeypatch, lake, path, SHARD)
    (run_id,) = unfinished(lake)
    table = tmp_path / "rows.csv"
    before = table.read_text()
    table.write_text(before.replace("r7,", "r70000,"))
    done = alab(lake, "capture", path, "--resume")
    assert done.exit_code == 1 and f"the dataset changed since {run_id}" in done.stderr
    assert f"alab rm {run_id}" in done.stderr
    table.write_text(before)
    scenario(lake, place, layers=[1])
    done = alab(lake, "capture", path, "--resume")
    assert done.exit_code == 1 and "the scenario changed" in done.stderr
    scenario(lake, place)
    assert alab(lake, "capture", path, "--resume").stdout.split() == [run_id]


def test_rows_that_a_query_draws_by_chance_are_not_gone_on_with(lake, place, monkeypatch):
    draw = {"query": "select * from source order by random() limit 30"}
    path = scenario(lake, place, dataset=draw)
    stop(monkeypatch, lake, path, SHARD)
    done = alab(lake, "capture", path, "--resume")
    assert done.exit_code == 1 and "the dataset changed" in done.stderr


def test_unfinished_ones_are_deleted(lake, place, monkeypatch):
    path = scenario(lake, place)
    stop(monkeypatch, lake, path, SHARD)
    (run_id,) = unfinished(lake)
    done = alab(lake, "rm", "-y", run_id)
    assert done.exit_code == 0 and run_id in done.stderr and "freed" in done.stdout
    assert unfinished(lake) == []
    assert not [path for path in lake.staging.iterdir() if path.is_dir()]


def test_a_kill_after_the_last_step_leaves_a_run_and_nothing_to_go_on_with(
    lake, place, monkeypatch
):
    path = scenario(lake, place)
    stop(monkeypatch, lake, path, "warehouse.lake.staging.StagedRun._close")
    (run_id,) = lake.run_ids()
    assert unfinished(lake) == []
    assert "no capture of colours" in alab(lake, "capture", path, "--resume").stderr
    assert run_id in alab(lake, "runs").stdout
    assert alab(lake, "check", "--deep").exit_code == 0
    assert not [path for path in lake.staging.iterdir() if path.is_dir()]
    count = "select count(*) as n from activations where layer = 0"
    assert alab(lake, "sql", count, "--format", "csv").stdout.split() == ["n", "120"]
    assert alab(lake, "rm", "-y", run_id).exit_code == 0


def test_a_deletion_that_is_killed_leaves_nothing_to_go_on_with(lake, place, monkeypatch):
    stop(monkeypatch, lake, scenario(lake, place), SHARD)
    (run_id,) = unfinished(lake)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        assert alab(lake, "rm", "-y", run_id).exit_code == 130
    assert unfinished(lake) == []
    lake.sweep()
    assert not [path for path in lake.staging.iterdir() if path.is_dir()]


@pytest.mark.parametrize(("dataset", "words"), [
    ({"source": "nowhere.csv"}, "there is no file"),
    ({"query": "select words from source where words = 'mauve'"}, "no rows"),
    ({"query": "selec"}, "query: "),
    ({"id": "kind"}, "id: kind is '0' in row 0 and in row 5"),
    ({"text": "{{ colour }}"}, "no column 'colour'"),
    ({"query": "select *, 1 as run_id from source"}, "a column is called run_id"),
    ({"query": "select *, [kind] as kinds from source"}, "nested type"),
    ({"query": "select key, kind, repeat(words, 40) as words from source"}, "more than the model's context of 128"),
    ({"query": "select key, kind, nullif(key, 'r7') as words from source"}, "row 'r7': words is NULL"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(lake, place, dataset, words):
    done = alab(lake, "capture", scenario(lake, place, dataset=dataset))
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert (done.exit_code, len(told)) == (2, 1), done.stderr
    assert words in told[0] and "Traceback" not in done.stderr
    assert not lake.root.exists()


def test_a_killed_command_is_gone_on_with(lake, place):
    """SIGKILL, wherever it is then: the shard that was finished is not read again."""
    path = scenario(lake, place, rows=3000)
    command = [ALAB, "-w", lake.warehouse, "capture", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not list(lake.staging.glob("*/shards/0*")) and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if run_ids := unfinished(lake):  # else it was quicker than we were
        done = alab(lake, "capture", path, "--resume")
        assert (done.exit_code, done.stdout.split()) == (0, run_ids)
    assert alab(lake, "check", "--deep").exit_code == 0
    vectors, labels = warehouse.open(lake.warehouse).matrix("latest", "hidden_out", 1)
    assert len(vectors) == 3000 and len(set(labels["key"].to_pylist())) == 3000
