"""A lake at a URL: what appears when, what two machines see, and what is said where a store refuses."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from synthetic import Shape, make_run

from warehouse.catalog import catalog, check, removal
from warehouse.errors import AlabError
from warehouse.lake import objects, remote, survey
from warehouse.lake.lake import Lake
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.objects import ObjectStore
from warehouse.query import run as query

SMALL = Shape(layers=2, steps=2, messages=2, labels=("joy",))
TINY = Shape(
    layers=1,
    steps=2,
    messages=1,
    labels=("joy",),
    activations=False,
    attention=False,
    outputs=False,
)


class Stopped(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)


def lake_of(url: str, machine: str, monkeypatch) -> Lake:
    """The lake as another machine has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(os.environ["XDG_CACHE_HOME"]).parent / machine))
    return Lake(url)


def keys(s3, url: str, part: str = "") -> list[str]:
    return [key for key in s3.keys(url.split("/")[2]) if part in key]


def asked(lake: Lake, sql: str, *values) -> list[tuple]:
    with catalog.connect(lake) as db:
        return db.execute(sql, list(values)).fetchall()


def sound(lake: Lake) -> list[str]:
    return [str(problem) for problem in check.check(lake, deep=True)]


def test_objects_are_created_once_and_replaced_by_who_saw_the_last(url):
    store = ObjectStore(url)
    first = store.put("a", b"1", None)
    assert store.put("a", b"2", None) is None
    assert store.get("a") == (b"1", first)
    assert store.get("a", unless=first) == (b"", first)
    second = store.put("a", b"2", first)
    assert second and store.put("a", b"3", first) is None and store.get("a")[0] == b"2"
    assert store.put("none", b"3", first) is None and store.get("none") is None
    assert (
        store.put("a", b"2", None) == second
    )  # as where an answer was lost and the request sent again


def test_any_range_is_what_a_file_has(url, tmp_path, monkeypatch, s3):
    monkeypatch.setattr(objects, "BLOCK", 1000)
    monkeypatch.setattr(objects, "BLOCKS", 5)
    store, rng = ObjectStore(url), np.random.default_rng(0)
    data = rng.bytes(20_500)
    (tmp_path / "file").write_bytes(data)
    store.upload([(tmp_path / "file", "file")])
    with objects.ObjectFile(store, "file").open() as file:
        for start, count in rng.integers(0, 21_000, (200, 2)):
            file.seek(start)
            assert file.read(int(count)) == data[start : start + count]
            assert file.tell() == max(start, min(start + count, len(data)))
        assert len(store._blocks) <= 5
    store = ObjectStore(url)
    with s3.counting() as counts:
        assert store.read("file", 0, 20_500) == data
    assert counts == {"HEAD": 1, "GET": 1}


def test_a_run_exists_with_its_manifest_and_not_before(url, s3):
    lake = Lake(url)
    seen = []

    def look(method: str, key: str) -> None:
        if method == "PUT" and "/run=" in key and "/.empty" not in key:
            seen.append(
                (
                    key.split("/lake/")[1].split("/")[0],
                    sorted(survey.index_of(remote.Remote(url))["runs"]),
                )
            )

    s3.refuse = look
    run_id = make_run(lake, "one", SMALL)
    s3.refuse = lambda method, key: None
    assert [runs for _, runs in seen] == [[]] * len(seen)
    assert [seen[n][0] for n in (0, 1, -1)] == [
        "metadata"
    ] * 3  # the claim, made and renewed, and the manifest
    assert {dataset for dataset, _ in seen[2:-1]} == {
        "activations",
        "attention",
        "outputs",
        "states",
    }
    assert lake.run_ids() == [run_id] and sound(lake) == []
    assert not list(lake.staging.glob("*/")) and not list(lake.root.glob("states"))


def test_another_machine_sees_runs_come_change_and_go(url, monkeypatch):
    here, there = Lake(url), lake_of(url, "there", monkeypatch)
    one = make_run(here, "one", SMALL)
    assert asked(there, "select run_id from runs") == [(one,)]
    two = make_run(there, "two", SMALL)
    assert {row[0] for row in asked(here, "select run_id from runs")} == {one, two}
    removal.remove(there, [one], activations_only=True)
    assert asked(here, "select count(*) from activations_of($1)", one) == [(0,)]
    assert asked(here, "select count(*) from states_of($1)", one)[0][0] > 0
    removal.remove(here, [one])
    assert there.run_ids() == [two] and asked(there, "select run_id from runs") == [(two,)]
    assert sound(here) == sound(there) == []


def test_two_writers_never_have_one_id(url, monkeypatch):
    here, there = Lake(url), lake_of(url, "there", monkeypatch)
    with pytest.MonkeyPatch.context() as patch:  # one second for both
        patch.setattr("warehouse.lake.lake.datetime", Stopped)
        a, b = here.stage("same"), there.stage("same")
    assert a.run_id != b.run_id and a.run_id.split("-")[0] == b.run_id.split("-")[0]
    with pytest.raises(AlabError, match="already has the run"):
        there.stage("x", run_id=a.run_id)
    a.discard(), b.discard()
    there.stage("x", run_id=a.run_id).discard()  # free again


def test_of_two_changes_at_once_one_is_refused(url, monkeypatch, s3):
    here, there = Lake(url), lake_of(url, "there", monkeypatch)
    run_id = make_run(here, "one", SMALL)
    with here.hold(run_id):
        there.drop(run_id, ["attention"])
        with pytest.raises(AlabError, match="another process has changed"):
            here.remote.remove(run_id, '"older"')
    with (
        pytest.raises(AlabError, match=r"another process has changed the run .*"),
        here.hold(run_id) as staged,
    ):
        there.drop(run_id, ["outputs"])
        staged.amend(
            {"files": here.metadata(run_id, "files"), "runs": here.metadata(run_id, "runs")}
        )
    assert here.run_ids() == [run_id]
    datasets = {row["dataset"] for row in here.metadata(run_id, "files").to_pylist()}
    assert datasets == {"activations", "states", "metadata"}
    assert {key.split("/lake/")[1].split("/")[0] for key in keys(s3, url, "/run=one")} == datasets
    assert sound(here) == sound(there) == []


def test_a_run_whose_writer_died_before_the_index_is_told_of_and_added(url, s3, monkeypatch):
    lake = Lake(url)
    first = make_run(lake, "first", TINY)
    monkeypatch.setattr(remote.Remote, "enlist", lambda *_: None)
    lost = make_run(lake_of(url, "there", monkeypatch), "lost", TINY)
    monkeypatch.undo()
    lake = lake_of(url, "third", monkeypatch) if "XDG_CACHE_HOME" in os.environ else lake
    assert lake.run_ids() == [first]
    (problem,) = check.check(lake)
    assert problem.kind == "unregistered" and problem.where == lost
    check.repair(lake)
    assert lake.run_ids() == sorted([first, lost]) and sound(lake) == []


def test_the_index_is_built_from_nothing(url, s3):
    lake = Lake(url)
    ids = [make_run(lake, name, TINY) for name in ("one", "two")]
    s3.client.delete_object(Bucket=url.split("/")[2], Key="lab/lake/index.json")
    check.repair(lake)
    assert lake.run_ids() == sorted(ids) and sound(lake) == []


@pytest.mark.parametrize("data", [b"", b"garbage{", b"[]", b'{"runs": 1', b"\xff\xfe"])
def test_a_damaged_index_is_made_anew_by_a_listing(url, s3, monkeypatch, data):
    ids = sorted(make_run(Lake(url), name, TINY) for name in ("one", "two"))
    s3.client.put_object(Bucket=url.split("/")[2], Key="lab/lake/index.json", Body=data)
    there = lake_of(url, "there", monkeypatch)
    assert there.run_ids() == ids
    (problem,) = check.check(there)
    assert (problem.kind, problem.where) == ("damaged", "lake/index.json")
    check.repair(there)
    assert there.run_ids() == ids and sound(there) == []


@pytest.mark.parametrize("data", [None, b"", b"garbage{", b"[]"])
def test_a_damaged_mirror_is_made_anew(url, monkeypatch, data):
    lake = Lake(url)
    gone, kept = (make_run(lake, name, TINY) for name in ("gone", "kept"))
    rows = asked(lake, "select run_id, step from steps")
    index = lake.root / "index.json"
    index.unlink() if data is None else index.write_bytes(data)
    assert lake.run_ids() == sorted([gone, kept]) and sound(lake) == []
    assert asked(lake, "select run_id, step from steps") == rows
    removal.remove(lake_of(url, "there", monkeypatch), [gone])
    if data is not None:  # it does not know any more which runs it had
        index.write_bytes(data)
    assert lake.run_ids() == [kept]


def test_what_was_swept_from_a_cache_comes_back(url):
    lake = Lake(url)
    ids = sorted(make_run(lake, name, TINY) for name in ("one", "two"))
    rows = asked(lake, "select run_id, step from steps")
    shutil.rmtree(lake.dataset("metadata", ids[0]))
    assert lake.run_ids() == ids and sound(lake) == []
    (lake.dataset("metadata", ids[1]) / "steps.parquet").write_bytes(b"PAR1")
    assert sound(lake) == []
    assert asked(lake, "select run_id, step from steps") == rows


def test_damage_is_found(url, s3, tmp_path):
    lake = Lake(url)
    run_id = make_run(lake, "one", SMALL)
    bucket = url.split("/")[2]
    gone, short, *_ = (key for key in keys(s3, url, "/activations/run=one"))
    (changed,) = keys(s3, url, "/states/run=one")
    s3.client.delete_object(Bucket=bucket, Key=gone)
    s3.client.put_object(Bucket=bucket, Key=short, Body=b"PAR1")
    size = s3.client.head_object(Bucket=bucket, Key=changed)["ContentLength"]
    s3.client.put_object(Bucket=bucket, Key=changed, Body=bytes(size))
    kinds = {problem.where: problem.kind for problem in check.check(Lake(url))}
    assert kinds == {
        gone.removeprefix("lab/lake/"): "missing", short.removeprefix("lab/lake/"): "truncated",
        changed.removeprefix("lab/lake/"): "changed",
    }  # fmt: skip
    for layer in (0, 1):
        with (
            pytest.raises(AlabError, match="is gone or cut"),
            query.ask(
                Lake(url),
                f"select sum(hidden_out[1]) from activations_of('{run_id}') where layer = {layer}",
            ) as result,
        ):
            list(result.rows)


def test_a_damaged_manifest_is_left_out_and_can_be_removed(url, s3):
    lake = Lake(url)
    run_id = make_run(lake, "one", TINY)
    s3.client.put_object(
        Bucket=url.split("/")[2], Key=f"lab/lake/metadata/run={run_id}/manifest", Body=b"PK no zip"
    )
    check.repair(lake)
    assert catalog_damaged(lake) == [run_id]
    removal.remove(lake, [run_id])
    assert lake.run_ids() == []


def catalog_damaged(lake: Lake) -> list[str]:
    with catalog.connect(lake) as db:
        return catalog.damaged(db)


def test_what_is_young_is_not_swept(url, s3, monkeypatch):
    writer = Lake(url)
    staged = writer.stage("writing")
    other = lake_of(url, "there", monkeypatch)
    check.repair(other)
    assert keys(s3, url, "run=writing") and sound(other) == []
    monkeypatch.setattr(survey, "GRACE", -1)
    assert [problem.kind for problem in check.check(other)] == ["orphan"]
    check.repair(other)
    assert not keys(s3, url, "run=writing") and sound(other) == []
    folder = staged.path("metadata")
    folder.mkdir(parents=True)
    with pytest.raises(AlabError, match="swept"):
        writer.remote.publish(staged.run_id, folder, (staged.folder / "claim").read_text())
    assert other.run_ids() == []
    runs = [{"scenario": "writing", "created_at": datetime(2026, 1, 2)}]
    staged.publish(
        MetadataWriter(staged, catalog.metadata_schemas(), {"runs": runs})
    )  # the id is taken again
    assert asked(other, "select run_id from runs") == [(staged.run_id,)] and sound(other) == []


def test_what_a_damaged_run_has_is_not_swept(url, s3, monkeypatch):
    lake = Lake(url)
    run_id = make_run(lake, "one", SMALL)
    data = keys(s3, url, "/states/run=")
    bucket, key = url.split("/")[2], f"lab/lake/metadata/run={run_id}/manifest"
    whole = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
    s3.client.put_object(Bucket=bucket, Key=key, Body=whole[: len(whole) // 2])
    monkeypatch.setattr(survey, "GRACE", -1)
    check.repair(lake)
    assert keys(s3, url, "/states/run=") == data and check.check(lake)
    s3.client.put_object(Bucket=bucket, Key=key, Body=whole)
    check.repair(lake)
    assert sound(lake) == []


# Killed


def publish(url: str, cache: str, name: str, delay: float | None) -> None:
    """Publish a run from a machine of its own; killed after a while, where one is given."""
    os.environ["XDG_CACHE_HOME"] = cache
    if delay is not None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, delay)
    make_run(Lake(url), name, SMALL if delay is not None else TINY, seed=int(name[1:]))


def worker(url: str, folder: str, *names: str) -> None:
    """Publish runs, each from a process of its own, all at once; print how each ended."""
    import s3fs  # noqa: F401  once for all

    children = {}
    for name, _, delay in (text.partition(":") for text in names):
        if not (child := os.fork()):
            try:
                publish(url, f"{folder}/{name}", name, float(delay) if delay else None)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children[child] = name
    ended = [os.wait() for _ in children]
    sys.stdout.write(
        json.dumps({children[child]: os.waitstatus_to_exitcode(status) for child, status in ended})
    )


@pytest.mark.parametrize(
    ("count", "doomed", "most"), [(10, 7, 0.6), pytest.param(100, 20, 1.5, marks=pytest.mark.soak)]
)
def test_workers_are_killed_while_they_publish(url, s3, tmp_path, monkeypatch, count, doomed, most):
    """Each on a machine of its own. Whenever one looks, what is there is whole, and in the end nothing else is."""
    reader, rng = Lake(url), random.Random(count)
    make_run(reader, "first", TINY)
    names = [f"w{number}" for number in range(count)]
    killed = {name: rng.uniform(0.0, most) for name in rng.sample(names, doomed)}
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys, test_url; test_url.worker(*sys.argv[1:])"
    ended: dict[str, int] = {}
    for start in range(0, count, 10):
        some = [
            f"{name}:{killed[name]:.3f}" if name in killed else name
            for name in names[start : start + 10]
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", code, url, str(tmp_path), *some],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None:
            seen = reader.run_ids()
            for run_id in rng.sample(seen, 1):
                data = {f"lab/{name}" for name in reader.remote.names(run_id) or ()}
                assert data and data <= set(keys(s3, url, run_id)) and reader.sound_files(run_id)
            time.sleep(0.1)
        ended |= json.loads(process.communicate()[0])
    done = {name for name, status in ended.items() if status == 0}
    assert len(ended) == count and set(ended.values()) == {0, -signal.SIGKILL}
    assert set(names) - killed.keys() <= done and len(done) < count
    monkeypatch.setattr(survey, "GRACE", -1)
    check.repair(reader)
    assert sound(reader) == []
    there = [run_id.partition("_")[0] for run_id in reader.run_ids()]
    assert len(there) == len(set(there)) and done | {"first"} <= set(
        there
    )  # more: killed after its manifest
    named = {
        f"lab/{name}" for run_id in reader.run_ids() for name in reader.remote.names(run_id) or ()
    }
    manifests = {f"lab/lake/metadata/run={run_id}/manifest" for run_id in reader.run_ids()}
    assert {key for key in keys(s3, url, "/run=") if "/.empty/" not in key} == named | manifests
