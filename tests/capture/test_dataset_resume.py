"""A dataset's capture that was stopped goes on where it was, and gives what one without a stop gives."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv
import pytest
import tiny
from captures import loaded, rows
from click.testing import CliRunner
from prompts_alone import make, table

import warehouse
from warehouse.capture import batches, dataset_run, trees
from warehouse.capture.dataset_run import capture_dataset
from warehouse.catalog import catalog, removal
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.lake import store
from warehouse.lake.lake import Lake
from warehouse.models import sites

SIZES = {"cpu": (8, 1 << 10)}
REQUEST = {"positions": ["last", "word", "mean"], "sites": ["hidden_out", "q"]}


@pytest.fixture(scope="module")
def model():
    one = tiny.model_of("llama")
    return loaded(one), sites.discover(one, sharing=False, batches=True)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(batches, "SHARD", 40)
    monkeypatch.setattr(dataset_run, "SIZES", SIZES)
    monkeypatch.setattr(trees, "FEWEST", 1 << 30)  # what a clock chooses: test_dataset_trees.py


@pytest.fixture(scope="module")
def source():
    return table(150)


def capture(lake, model, source, request=None, **options) -> str:
    return capture_dataset(request or make(**REQUEST), *model, lake, source=source, **options)


def content(lake: Lake, run_id: str) -> dict[str, list]:
    """Everything about a run but its ids and times."""
    queries = {
        "activations": "select * exclude (run_id, mlp_act) from activations_of($run) order by layer, prompt_id, position",
        "states": "select * exclude (run_id) from states_of($run) order by layer, site, prompt_id",
        "labels": "select * exclude (run_id) from labels_of($run) order by prompt_id",
    } | {
        name: f"select * exclude (run_id) from {name} where run_id = $run order by all"
        for name in (
            "prompts",
            "tokens",
            "messages",
            "steps",
            "positions",
            "batches",
            "layers",
            "sites",
            "warnings",
        )
    }
    lab = warehouse.open(lake.warehouse)
    return {name: lab.sql(query, run=run_id).fetchall() for name, query in queries.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, source):
    """What a capture without a stop gives."""
    lake = Lake(tmp_path_factory.mktemp("whole") / "lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "SHARD", 40)
        patch.setattr(dataset_run, "SIZES", SIZES)
        patch.setattr(trees, "FEWEST", 1 << 30)
        return content(lake, capture(lake, model, source))


def stop_after(monkeypatch, owner, name: str, calls: int) -> None:
    """Let a function raise as a user's Ctrl-C would, the n-th time that it is called."""
    own, left = getattr(owner, name), [calls]

    def stopping(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return own(*arguments, **options)

    monkeypatch.setattr(owner, name, stopping)


def sweep(lake: Lake) -> None:
    """What any other command does."""
    with catalog.connect(lake):
        pass


@pytest.mark.parametrize("calls", [0, 1, 3, 5, 8])
def test_a_stop_between_batches(lake, monkeypatch, model, source, whole, calls):
    with monkeypatch.context() as patch:
        stop_after(patch, dataset_run._Shards, "_read_batch", calls)
        with pytest.raises(KeyboardInterrupt) as stop:
            capture(lake, model, source)
    sweep(lake)
    assert "go on with --resume" in stop.value.__notes__[0]  # which the command line tells
    (run_id,) = lake.unfinished()
    assert lake.run_ids() == []
    assert capture(lake, model, source, resume=True) == run_id
    assert lake.unfinished() == {}
    assert list(lake.staging.iterdir()) == []
    assert content(lake, run_id) == whole


@pytest.mark.parametrize("calls", [1, 4, 8, 15])
def test_a_stop_while_files_are_put_in_place(lake, monkeypatch, model, source, whole, calls):
    with monkeypatch.context() as patch:
        patch.setattr(dataset_run, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            capture(lake, model, source)
    with monkeypatch.context() as patch:
        stop_after(patch, store, "move", calls)
        with pytest.raises(KeyboardInterrupt):
            capture(lake, model, source, resume=True)
    sweep(lake)
    run_id = capture(lake, model, source, resume=True)
    assert content(lake, run_id) == whole


def test_a_stop_after_a_stop(lake, monkeypatch, model, source, whole):
    for resume in (False, True, True):
        with monkeypatch.context() as patch:
            stop_after(patch, dataset_run._Shards, "_read_batch", 2)
            with pytest.raises(KeyboardInterrupt):
                capture(lake, model, source, resume=resume)
    assert content(lake, capture(lake, model, source, resume=True)) == whole


def test_what_changed_is_refused(lake, monkeypatch, model, source):
    with monkeypatch.context() as patch:
        stop_after(patch, dataset_run._Shards, "_read_batch", 2)
        with pytest.raises(KeyboardInterrupt):
            capture(lake, model, source)
    with pytest.raises(AlabError, match="the scenario changed"):
        capture(lake, model, source, make(**REQUEST | {"positions": ["last"]}), resume=True)
    with pytest.raises(AlabError, match="the dataset changed"):
        capture(lake, model, source.slice(1), resume=True)
    other = tiny.model_of("gpt2")
    pair = loaded(other), sites.discover(other, sharing=False, batches=True)
    with pytest.raises(AlabError, match="the model's weights changed"):
        capture(lake, pair, source, resume=True)
    with pytest.raises(AlabError, match="no capture of other"):
        capture(lake, model, source, make("other", **REQUEST), resume=True)
    assert len(lake.unfinished()) == 1


def test_unfinished_ones_are_listed_and_deleted(lake, monkeypatch, model, source):
    with monkeypatch.context() as patch:
        stop_after(patch, dataset_run._Shards, "_read_batch", 2)
        with pytest.raises(KeyboardInterrupt):
            capture(lake, model, source)
    capture(lake, model, source)
    (run_id,) = lake.unfinished()
    call = ["-w", str(lake.warehouse)]
    listed = CliRunner().invoke(main, [*call, "runs", "--unfinished", "--format", "json"])
    assert [(row["run_id"], row["prompts"]) for row in json.loads(listed.stdout)] == [(run_id, 150)]
    deleted = CliRunner().invoke(main, [*call, "rm", "-y", run_id])
    assert deleted.exit_code == 0, deleted.output
    assert lake.unfinished() == {}
    assert rows(lake, "select count(*) from runs") == [(1,)]


def test_two_processes_do_not_go_on_with_one(lake, monkeypatch, model, source):
    with monkeypatch.context() as patch:
        stop_after(patch, dataset_run._Shards, "_read_batch", 2)
        with pytest.raises(KeyboardInterrupt):
            capture(lake, model, source)
    (run_id,) = lake.unfinished()
    staged = lake.resume(run_id)
    with pytest.raises(AlabError, match="another process is capturing"):
        capture(lake, model, source, resume=True)
    staged.release()


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import tiny
from captures import loaded
from test_dataset_resume import REQUEST, SIZES, make
from pyarrow import csv
from warehouse.capture import batches, dataset_run, trees
from warehouse.capture.dataset_run import capture_dataset
from warehouse.lake.lake import Lake
from warehouse.models import sites
batches.SHARD = 40
dataset_run.SIZES = SIZES
trees.FEWEST = 1 << 30
model = tiny.model_of("llama")
pair = loaded(model), sites.discover(model, sharing=False, batches=True)
lake = Lake({lake!r})
table = csv.read_csv({source!r}, convert_options=csv.ConvertOptions(strings_can_be_null=False))
print("ready", flush=True)
capture_dataset(make(**REQUEST), *pair, lake, source=table, resume=bool(lake.unfinished()))
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_kills_at_random_moments(lake, tmp_path, model, source, kills):
    path = tmp_path / "rows.csv"
    pyarrow.csv.write_csv(source, path)
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=False)
    own = pyarrow.csv.read_csv(path, convert_options=options)
    there = Lake(tmp_path / "whole")
    expected = content(there, capture(there, model, own))
    tests = str(Path(__file__).parent), str(Path(__file__).parents[1])
    script = SCRIPT.format(tests=tests[0], lake=str(lake.warehouse), source=str(path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*tests, *sys.path])}
    rng = random.Random(kills)
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if lake.root.is_dir():  # else it was killed before there was anything
            sweep(lake)
        for run_id in lake.run_ids():  # it was done before: look at it, and begin anew
            assert content(lake, run_id) == expected
            removal.remove(lake, [run_id])
    if not lake.run_ids():
        capture(lake, model, own, resume=bool(lake.unfinished()))
    (run_id,) = lake.run_ids()
    assert content(lake, run_id) == expected
