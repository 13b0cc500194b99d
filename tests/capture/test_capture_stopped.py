"""Captures that end early: no room, a full disk, an interrupt, a kill, a catalog in use."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from captures import make_scenario, rows, run

from warehouse.capture import conversation as capture
from warehouse.catalog import catalog
from warehouse.errors import AlabError


def test_a_disk_without_room_is_seen_beforehand(lake, llama, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(AlabError, match=r"(?s)needs about .* GB; .* has 0.000 GB free.*--force"):
        run(lake, llama)
    assert not lake.root.exists()
    assert capture.capture_one(make_scenario(), *llama, lake, force=True)


def test_a_disk_that_fills_up_leaves_nothing(lake, llama, monkeypatch):
    """A write that fails half-way, in the writer's thread, ends the capture with a clear error."""
    from warehouse.lake import store

    original = store.append
    written = []

    def full(file, data):
        written.append(len(data))
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return original(file, data)

    kept = run(lake, llama)
    monkeypatch.setattr(store, "append", full)
    with pytest.raises(
        AlabError, match=r"(?s)No space left on device.*Nothing of this run was kept"
    ):
        run(lake, llama)
    assert rows(lake, "select run_id from runs") == [(kept,)]
    assert not [p for p in lake.staging.iterdir() if p.is_dir()]
    assert lake.run_ids() == [kept]


def test_an_interrupt_leaves_nothing(lake, llama):
    def progress(what, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture.capture_one(make_scenario(), *llama, lake, progress=progress)
    assert lake.run_ids() == []
    assert not [p for p in lake.staging.iterdir() if p.is_dir()]
    assert not [t for t in threading.enumerate() if t.name == "alab-writer"]
    assert run(lake, llama)


def test_the_hooks_are_gone_afterwards(lake, llama):
    def hooks():
        return [
            (set(m._forward_hooks), set(m._forward_pre_hooks)) for m in llama[0].model.modules()
        ]

    before = hooks()
    run(lake, llama)
    assert hooks() == before


KILLED = """
import os, signal, sys, threading
sys.path.insert(0, {tests!r})
import captures, tiny
from warehouse.capture import conversation as capture
from warehouse.models import loading as models
from warehouse.models import sites
from warehouse.lake.lake import Lake
model = tiny.model_of("llama")
loaded = models.Loaded(model, tiny.tokenizer(), "tiny", "float32", "cpu")
def progress(what, done, total):
    if what == {at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
print(capture.capture_one(captures.make_scenario(), loaded, sites.discover(model), Lake({lake!r}), progress=progress))
"""


@pytest.mark.parametrize(
    "at", ["generating", "writing"]
)  # the latter: everything is read but not published
def test_kill_dash_nine_leaves_earlier_runs_and_no_other(lake, llama, at):
    kept = run(lake, llama)
    code = KILLED.format(tests=str(Path(__file__).parents[1]), lake=str(lake.warehouse), at=at)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in lake.staging.iterdir() if p.is_dir()]
    assert rows(lake, "select distinct run_id from activations") == [(kept,)]  # sweeps, too
    assert not [p for p in lake.staging.iterdir() if p.is_dir()]
    assert rows(lake, "select count(*) from runs") == [(1,)]


def test_a_catalog_in_use_delays_registration_and_loses_nothing(lake, llama, monkeypatch):
    first = run(lake, llama)
    shell = [
        sys.executable,
        "-c",
        "import duckdb, sys, time; c = duckdb.connect(sys.argv[1], read_only=True); print('open', flush=True); time.sleep(60)",
        str(lake.catalog),
    ]
    holder = subprocess.Popen(shell, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "open\n"
    original = catalog.Catalog.sync
    monkeypatch.setattr(
        catalog.Catalog, "sync", lambda self, **options: original(self, timeout=0.2)
    )
    told = []
    try:
        second = capture.capture_one(
            make_scenario(), *llama, lake, progress=lambda *a: told.append(a[0])
        )
        assert any(
            "the next alab command registers it: another process holds" in what for what in told
        )
        assert second in lake.run_ids()
    finally:
        holder.kill()
        holder.wait()
    assert sorted(r for (r,) in rows(lake, "select run_id from runs")) == sorted([first, second])
