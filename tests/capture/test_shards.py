"""A dataset's capture that many processes share: any order, any deaths, the same content."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from captures import make_scenario
from click.testing import CliRunner
from prompts_alone import make, table
from test_dataset_resume import content, sweep

from warehouse.capture import batches, dataset_run, shards, trees
from warehouse.capture.batches import make_batches, parse_share, shard_of
from warehouse.capture.dataset_run import capture_dataset
from warehouse.capture.shards import capture_share
from warehouse.catalog import check, removal
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.scenario import parse

REQUEST = {"positions": ["last", "word", "mean"], "sites": ["hidden_out", "q"]}
COUNT = 5


def settle(patch: pytest.MonkeyPatch) -> None:
    """Two parts of the plan for each shard, small batches, and no clock that decides anything."""
    patch.setattr(batches, "SHARD", 15)
    patch.setattr(dataset_run, "SIZES", {"cpu": (8, 1 << 10)})
    # Whether trees are faster is measured: two captures may choose differently.
    patch.setattr(trees, "FEWEST", 1 << 30)


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    settle(monkeypatch)


@pytest.fixture(scope="module")
def source():
    return table(150)


def share(lake, llama, source, which, request=None, said=None, **options):
    """Read a shard, or publish with None."""
    tell = (lambda what, _, total: None if total else said.append(what)) if said is not None else (lambda *_: None)  # fmt: skip
    one = request or make(**REQUEST)
    options |= {"source": source, "progress": tell}
    return capture_share(one, *llama, lake, which and (which, COUNT), **options)


def read_whole(lake: Lake, batched, source) -> tuple[str, dict]:
    """A run's id and what is in it, by one process that reads one shard after the other."""
    with pytest.MonkeyPatch.context() as patch:
        settle(patch)
        for index in range(1, COUNT + 1):
            assert share(lake, batched, source, index) is None
        run_id = share(lake, batched, source, None)
    return run_id, content(lake, run_id)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, batched, source):
    return read_whole(Lake(tmp_path_factory.mktemp("whole") / "lab"), batched, source)


def test_a_shard_has_the_rows_whose_hash_says_so():
    ids = [f"row {n}" for n in range(100)]
    plan = make_batches([3] * 100, ids, range(100), 4, shard=6, parts=5)
    assert len(plan.shards) == 20
    for number, some in enumerate(plan.shards):
        for batch in some:
            assert {shard_of(ids[n], 5) for n in batch.prompts} == {number % 5}
    assert sorted(n for batch in plan for n in batch.prompts) == list(range(100))


def test_one_part_is_the_plan_of_a_capture_without_shards():
    ids = [str(n) for n in range(100)]
    assert make_batches([3] * 100, ids, range(100), 4, 30, parts=1) == make_batches([3] * 100, ids, range(100), 4, 30)  # fmt: skip


def test_in_any_order_and_once(lake, batched, source, whole):
    said = []
    for index in (4, 1, 5, 1, 3, 4, 2, 2):
        share(lake, batched, source, index, said=said)
        sweep(lake)
    assert [line.partition("; ")[0].rpartition(" is ")[2] for line in said if "was" not in line] == ["there"] * 5  # fmt: skip
    assert len([line for line in said if "was there already" in line]) == 3
    assert said[0].endswith("missing yet: 1, 2, 3, 5")
    assert said[-1].endswith("all are there: --finish publishes")
    run_id = share(lake, batched, source, None)
    assert (run_id, content(lake, run_id)) == whole  # the id too: machines agree on it
    assert lake.unfinished() == {} and not list(lake.staging.iterdir())
    assert check.check(lake, deep=True) == []


def test_the_rows_of_a_run_are_those_of_one_without_shards(lake, batched, source, whole):
    """All but which prompts were read together, which is another plan."""
    run_id = capture_dataset(make(**REQUEST), *batched, lake, source=source)
    own = content(lake, run_id)
    for name in ("labels", "prompts", "tokens", "positions", "sites"):
        assert own[name] == whole[1][name]


def test_what_is_not_read_again(lake, batched, source, monkeypatch):
    share(lake, batched, source, 2)
    monkeypatch.setattr(dataset_run._Shards, "_read_batch", None)
    share(lake, batched, source, 2)


def test_too_early_to_finish(lake, batched, source):
    with pytest.raises(AlabError, match="there are no shards of d\n"):
        share(lake, batched, source, None)
    for index in (1, 3):
        share(lake, batched, source, index)
    with pytest.raises(AlabError, match=r"lacks 3 of its 5 shards: 2, 4, 5\n.*--shard 2/5"):
        share(lake, batched, source, None)
    ((*_, there),) = removal.stopped(lake)[1]
    assert there == "2 of 5: 1, 3"


def test_finished_twice(lake, batched, source, whole):
    for index in range(1, COUNT + 1):
        share(lake, batched, source, index)
    said = []
    run_id = share(lake, batched, source, None)
    assert share(lake, batched, source, None, said=said) == run_id
    share(lake, batched, source, 3, said=said)
    assert said == [f"{run_id} is published already", f"{run_id} is published already"]
    assert lake.run_ids() == [run_id] and lake.unfinished() == {}


@pytest.mark.parametrize("what", ["scenario", "dataset", "weights", "torch"])
def test_what_changed_is_refused(lake, batched, source, what, monkeypatch):
    share(lake, batched, source, 1)
    request, rows, model = make(**REQUEST), source, batched
    if what == "scenario":
        request = make(positions=["last"], sites=["hidden_out"])
    elif what == "dataset":
        rows = table(149)
    elif what == "torch":
        monkeypatch.setattr("torch.__version__", "2.0")
    else:
        monkeypatch.setitem(batched[0].__dict__, "weights_hash", "f" * 32)
    for which in (2, None):
        with pytest.raises(AlabError, match=f"{what}.* changed since d_.*-of-5 was begun"):
            share(lake, model, rows, which, request)
    assert len(lake.unfinished()) == 1


def test_a_run_of_other_weights_is_not_taken_for_ours(lake, batched, source, monkeypatch):
    for index in range(1, COUNT + 1):
        share(lake, batched, source, index)
    run_id = share(lake, batched, source, None)
    monkeypatch.setitem(batched[0].__dict__, "weights_hash", "f" * 32)
    for which in (2, None):
        with pytest.raises(AlabError, match=f"weights are not those of {run_id}"):
            share(lake, batched, source, which)


def test_shards_of_two_counts(lake, batched, source):
    share(lake, batched, source, 1)
    capture_share(make(**REQUEST), *batched, lake, (1, 2), source=source)
    with pytest.raises(AlabError, match=r"for several runs: .*-of-2, .*-of-5"):
        share(lake, batched, source, None)
    prepared = dataset_run.prepare(make(**REQUEST), *batched, lake, source=source)
    with pytest.raises(AlabError, match="of-2 lacks 1 of its 2 shards: 2"):
        shards.finish(prepared, lake, lambda *_: None, 2)
    capture_share(make(**REQUEST), *batched, lake, (2, 2), source=source)
    run_id = shards.finish(prepared, lake, lambda *_: None, 2)
    assert run_id.endswith("-of-2") and lake.run_ids() == [run_id]
    assert shards.finish(prepared, lake, lambda *_: None, 2) == run_id


def test_resume_leaves_shards_alone(lake, batched, source):
    share(lake, batched, source, 1)
    with pytest.raises(AlabError, match="there is no capture of d to go on with"):
        capture_dataset(make(**REQUEST), *batched, lake, source=source, resume=True)


def test_a_shard_belongs_to_one_process_at_a_time(lake, batched, source):
    share(lake, batched, source, 1)
    (run_id,) = lake.unfinished()
    held = lake.join(run_id, {}, 2)
    with pytest.raises(AlabError, match=f"another process is reading shard 2 of {run_id}"):
        lake.join(run_id, {}, 2, wait=0.1)
    with pytest.raises(AlabError, match=f"another process is capturing {run_id}"):
        removal.remove(lake, [run_id])
    share(lake, batched, source, 3)  # others go on
    held.release()
    removal.remove(lake, [run_id])
    assert lake.unfinished() == {} and not list(lake.staging.iterdir())


def test_a_stop_within_a_shard_keeps_its_parts(lake, batched, source, whole, monkeypatch):
    from test_dataset_resume import stop_after

    with monkeypatch.context() as patch:
        stop_after(patch, dataset_run._Shards, "_read_batch", 3)
        with pytest.raises(KeyboardInterrupt) as stop:
            share(lake, batched, source, 1)
    assert "go on with the same command" in stop.value.__notes__[0]
    (run_id,) = lake.unfinished()
    assert len(list((lake.staging / run_id / "shards").glob("0*"))) == 1
    for index in range(1, COUNT + 1):
        share(lake, batched, source, index)
    assert content(lake, share(lake, batched, source, None)) == whole[1]


def _work(warehouse, seed, threads) -> None:
    """What a process of its own does: its share of the shards, in an order of its own."""
    import random

    from captures import family

    torch.set_num_threads(threads)  # their number decides the last bits
    batches.SHARD, dataset_run.SIZES = 15, {"cpu": (8, 1 << 10)}
    trees.FEWEST = 1 << 30
    from warehouse.models import sites

    loaded = family("llama")[0]
    found = loaded, sites.discover(loaded.model, sharing=False, batches=True)
    order = random.Random(seed).sample(range(1, COUNT + 1), COUNT)
    for index in order:
        share(Lake(warehouse), found, table(150), index)


def test_processes_that_are_killed(lake, batched, source, whole):
    """Three at once, each at all shards; two are killed, and one more begins where they were."""
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    args = [(lake.warehouse, seed, threads) for seed in range(3)]
    first = [context.Process(target=_work, args=some) for some in args]
    for process in first:
        process.start()
    deadline = time.monotonic() + 120
    while not list(lake.staging.glob("*/shards/0*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in first[:2]:
        os.kill(process.pid, signal.SIGKILL)
    last = context.Process(target=_work, args=(lake.warehouse, 7, threads))
    last.start()
    for process in (*first, last):
        process.join()
    assert [process.exitcode for process in (*first, last)] == [-9, -9, 0, 0]
    sweep(lake)
    assert content(lake, share(lake, batched, source, None)) == whole[1]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "-1/4", "a/b", "3", "1/4/2", "", "1.5/4"])
def test_no_shard(text):
    with pytest.raises(AlabError, match="is no shard") as error:
        parse_share(text)
    assert error.value.exit_code == 2


def test_a_conversation_has_no_shards(lake, llama):
    with pytest.raises(AlabError, match="it has no shards"):
        capture_share(make_scenario(), *llama, lake, (1, 2))


def test_scenarios_of_a_folder(tmp_path, lake, llama, monkeypatch):
    """Each is in one shard, a run of its own, and is not run twice."""
    import yaml

    from warehouse.models import loading

    monkeypatch.setattr(loading, "load", lambda *_, **__: llama[0])
    monkeypatch.setattr("warehouse.capture.runs.check", lambda *_: None)
    folder = tmp_path / "scenarios"
    folder.mkdir()
    for name in ("anna", "ben", "carl", "dora", "emil"):
        data = make_scenario(name=name).model_dump(mode="json", exclude_unset=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))

    def run(*arguments):
        return CliRunner().invoke(main, ["-w", str(lake.warehouse), "capture", str(folder), *arguments])  # fmt: skip

    ids = [run("--shard", f"{index}/3").stdout.split() for index in (3, 1, 2)]
    names = [{run_id.partition("_")[0] for run_id in some} for some in ids]
    assert sorted(name for some in names for name in some) == [
        "anna",
        "ben",
        "carl",
        "dora",
        "emil",
    ]
    assert all(batches.is_in(make_scenario(name=name), (3, 3)) for name in names[0])
    again = run("--shard", "3/3")
    assert again.exit_code == 0 and again.stdout.split() == ids[0]
    assert len(lake.run_ids()) == 5
    assert run("--shard", "3/3", "--finish").exit_code == 2
    assert "has no shards" in run("--finish").stderr


def test_scenarios_of_a_folder_at_each_message(lake, llama, monkeypatch):
    one = make_scenario(name="each")
    assert shards.published(one, llama[0], lake) is None
    from captures import run

    run_id = run(lake, llama, name="each")
    assert shards.published(one, llama[0], lake) == run_id
    other = make_scenario(name="each", generation={"seed": 3})
    assert shards.published(other, llama[0], lake) is None
    monkeypatch.setitem(llama[0].__dict__, "weights_hash", "f" * 32)
    assert shards.published(one, llama[0], lake) is None


def test_a_dataset_of_a_folder_is_read_again_where_its_rows_changed(lake, batched, tmp_path):
    file = tmp_path / "rows.csv"
    one = parse({"name": "rows", "model": {"id": "tiny"}, "prompt": {"dataset": {"source": str(file), "text": "{{ a }}"}}})  # fmt: skip
    file.write_text("a,b\nhello,1\nthere,2\n")
    run_id = capture_dataset(one, *batched, lake)
    assert shards.published(one, batched[0], lake) == run_id
    file.write_text("a,b\nhello,1\nthere,3\n")
    assert shards.published(one, batched[0], lake) is None


def test_shards_of_another_number_are_not_read_where_the_run_is_there(lake, batched, source, whole):
    for index in range(1, COUNT + 1):
        share(lake, batched, source, index)
    run_id = share(lake, batched, source, None)
    said = []
    tell = lambda what, _, total: None if total else said.append(what)  # noqa: E731
    for which in ((1, 2), None):
        options = {"source": source, "progress": tell}
        capture_share(make(**REQUEST), *batched, lake, which, **options)
    assert said == [f"{run_id} is published already"] * 2
    assert lake.run_ids() == [run_id] and lake.unfinished() == {}
