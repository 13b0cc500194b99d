"""Runs are there whole or not at all, whatever dies, waits or happens at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from synthetic import Shape, make_run

from warehouse.catalog import catalog, check
from warehouse.lake import store
from warehouse.lake.lake import Lake
from warehouse.lake.metadata import MetadataWriter
from warehouse.vocabulary import BULK

SMALL = Shape(layers=1, steps=2, messages=2, labels=("joy",))
TESTS = Path(__file__).parent


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def count(lake: Lake, relation: str = "states") -> int:
    with catalog.connect(lake) as db:
        return db.execute(f"SELECT count(*) FROM {relation}").fetchone()[0]


def folders(lake: Lake) -> list[str]:
    return sorted(path.relative_to(lake.root).as_posix() for path in lake.root.glob("[!.]*/run=*"))


def die_at(monkeypatch, target, name: str, call: int):
    """Make the `call`-th call of a function raise, and leave no chance to clean up."""
    original, calls = getattr(target, name), []

    def dies(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            monkeypatch.setattr(
                "warehouse.lake.staging.StagedRun.discard", lambda self: self._lock.release()
            )
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, dies)


@pytest.mark.parametrize("call", range(1, 6))
def test_a_publish_that_dies_before_any_rename_leaves_nothing(lake, monkeypatch, call):
    kept = make_run(lake, "kept", SMALL)
    before = folders(lake)
    with monkeypatch.context() as patch:
        die_at(patch, store, "move", call)  # activations, attention, outputs, states, metadata
        with pytest.raises(Killed):
            make_run(lake, "broken", SMALL)
    assert lake.run_ids() == [kept]
    assert len(folders(lake)) == len(before) + call - 1
    assert (
        count(lake) == 4 * 4 + 4 * 2
    )  # initial, final, 3 snapshots, 1 reference; one layer, 4 sites
    assert folders(lake) == before
    assert check.check(lake) == []
    assert not list(lake.staging.iterdir())


@pytest.mark.parametrize("stage", [(MetadataWriter, "_write"), (pq, "read_metadata")])
def test_a_publish_that_dies_while_it_writes_leaves_nothing(lake, monkeypatch, stage):
    with monkeypatch.context() as patch:
        die_at(patch, *stage, 3)
        with pytest.raises(Killed):
            make_run(lake, "broken", SMALL)
    assert count(lake) == 0
    assert folders(lake) == []


def test_the_sweep_spares_runs_that_are_being_written(lake):
    live, dead = lake.stage("live"), lake.stage("dead")
    live.path("states").mkdir(parents=True)
    dead._lock.release()
    assert lake.sweep() == [dead.run_id]
    assert live.folder.exists()
    assert not dead.folder.exists()
    live.discard()
    assert not list(lake.staging.iterdir())


@pytest.mark.soak
def test_kill_nine_while_publishing_in_a_loop(lake):
    script = (
        "import sys; from synthetic import *; from warehouse.lake.lake import Lake\n"
        "shape = Shape(layers=1, steps=2, messages=2, labels=('joy',))\n"
        "for i in range(1000): print(make_run(Lake(sys.argv[1]), 'loop', shape, seed=i), flush=True)\n"
    )
    published = []
    for wait in (0.05, 0.11, 0.017):
        command = [sys.executable, "-c", script, str(lake.warehouse)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TESTS) as process:
            published.append(process.stdout.readline().strip())
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            published += process.stdout.read().split()
    with catalog.connect(lake) as db:
        there = {row[0] for row in db.execute("SELECT run_id FROM runs").fetchall()}
    assert set(published) <= there == set(lake.run_ids())
    assert check.check(lake) == []
    assert not list(lake.staging.glob("*/"))


@pytest.mark.parametrize("call", range(1, 4))
def test_a_drop_that_dies_is_finished_or_undone_by_the_next_command(lake, monkeypatch, call):
    run_id = make_run(lake, "one", SMALL)
    catalog.sync(lake)
    rows = count(lake, "activations")
    with monkeypatch.context() as patch:
        die_at(patch, store, *(("copy", 1), ("move", 1), ("move", 3))[call - 1])
        with pytest.raises(Killed):
            lake.drop(run_id, BULK)
    assert count(lake, "activations") == (rows if call < 3 else 0)
    assert count(lake, "states") > 0
    assert check.check(lake) == []


def test_a_run_is_looked_at_again_when_it_was_being_amended(lake):
    run_id = make_run(lake, "one", SMALL)
    path = lake.dataset("metadata", run_id) / "runs.parquet"
    whole = path.read_bytes()
    with lake.hold(run_id):
        path.write_bytes(b"half-way")
        catalog.sync(lake)
        with catalog.Catalog(lake).open(read_only=True, timeout=1) as db:
            assert db.execute(
                "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM catalog_runs)"
            ).fetchone() == (0, 0)
        path.write_bytes(whole)
    assert count(lake, "runs") == 1


def test_a_removal_that_dies_is_finished_by_the_next_command(lake, monkeypatch):
    kept, gone = make_run(lake, "kept", SMALL), make_run(lake, "gone", SMALL)
    with monkeypatch.context() as patch:
        die_at(patch, shutil, "rmtree", 2)
        with pytest.raises(Killed):
            lake.remove(gone)
    assert lake.run_ids() == [kept]
    assert count(lake, "runs") == 1
    assert all(kept in folder for folder in folders(lake))
    assert check.check(lake) == []


def test_a_shell_that_holds_the_catalog_delays_registration_and_loses_nothing(lake):
    shell = shutil.which("duckdb", path=str(Path(sys.executable).parent)) or shutil.which("duckdb")
    if shell is None:
        pytest.skip("no duckdb command line")
    first = make_run(lake, "first", SMALL)
    catalog.sync(lake)
    command = [shell, "-readonly", "-csv", str(lake.catalog)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdin.write("select run_id from runs;\n")
        process.stdin.flush()
        assert [process.stdout.readline().strip() for _ in range(2)] == ["run_id", first]
        second = make_run(lake, "second", SMALL)
        with pytest.raises(catalog.CatalogBusyError, match="another process holds"):
            catalog.sync(lake, timeout=0.2)
        with catalog.connect(lake, timeout=0.2) as db:  # readers see it in a copy
            assert db.execute("SELECT run_id FROM runs ORDER BY run_id").fetchall() == [
                (first,),
                (second,),
            ]
        with catalog.Catalog(lake).open(read_only=True, timeout=0.2) as db:
            assert db.execute("SELECT run_id FROM runs").fetchall() == [(first,)]
        process.stdin.close()
        process.wait()
    with catalog.connect(lake) as db:
        assert db.execute("SELECT run_id FROM runs ORDER BY run_id").fetchall() == [
            (first,),
            (second,),
        ]


@pytest.mark.soak
def test_four_processes_that_publish_and_sync_at_once_all_land(lake):
    script = (
        "import sys; from synthetic import *; from warehouse.catalog import catalog; from warehouse.lake.lake import Lake\n"
        "lake = Lake(sys.argv[1]); shape = Shape(layers=1, steps=2, messages=2, labels=('joy',))\n"
        "for i in range(3):\n  make_run(lake, 'same', shape, seed=i); catalog.sync(lake, timeout=60)\n"
    )
    command = [sys.executable, "-c", script, str(lake.warehouse)]
    processes = [subprocess.Popen(command, cwd=TESTS, env=os.environ) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    with catalog.Catalog(lake).open(read_only=True, timeout=1) as db:
        assert db.execute("SELECT count(*), count(DISTINCT run_id) FROM runs").fetchone() == (
            12,
            12,
        )
    assert check.check(lake) == []
