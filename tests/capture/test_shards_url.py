"""Shards of machines that share a bucket and no disk: each has a cache of its own."""

import json

import pytest
from prompts_alone import table
from test_dataset_resume import content
from test_shards import COUNT, read_whole, settle, share

from warehouse.capture import dataset_run
from warehouse.catalog import check, removal
from warehouse.errors import AlabError, ConflictError
from warehouse.lake import shared, store, survey
from warehouse.lake.lake import Lake
from warehouse.lake.objects import ObjectStore
from warehouse.lake.remote import Remote
from warehouse.lake.shared import SharedRun


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    settle(monkeypatch)


@pytest.fixture(scope="module")
def source():
    return table(150)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, batched, source):
    """What one process gives on a disk."""
    return read_whole(Lake(tmp_path_factory.mktemp("whole") / "lab"), batched, source)


@pytest.fixture
def machine(url, tmp_path, monkeypatch):
    """The lake as one of several machines sees it."""

    def lake(name: str) -> Lake:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return Lake(url)

    return lake


def missing(lake: Lake, run_id: str) -> list[int]:
    return lake.missing(run_id, lake.unfinished()[run_id])


def names(lake: Lake) -> list[str]:
    """What the bucket holds of runs."""
    found = lake.remote.objects.listing("lake")
    return sorted(name for name in found if "/run=" in name and "/.empty/" not in name)


def test_any_machine_any_order(machine, batched, source, whole):
    said = []
    for number, index in enumerate((4, 1, 5, 1, 3, 2)):
        share(machine(f"m{number}"), batched, source, index, said=said)
    assert "missing yet: 1, 2, 3, 5" in said[0] and "was there already" in said[3]
    assert said[-1].endswith("all are there: --finish publishes")
    lake = machine("last")
    assert lake.run_ids() == [] and list(lake.unfinished()) == [whole[0]]
    run_id = share(lake, batched, source, None)
    assert (run_id, content(lake, run_id)) == whole
    assert lake.unfinished() == {} and check.check(lake, deep=True) == []
    assert not [name for name in names(lake) if "shard-" in name]
    for name in ("m0", "m4", "another"):  # also those who have a half of it on their disk
        lake, said = machine(name), []
        assert share(lake, batched, source, None, said=said) == run_id
        share(lake, batched, source, 2, said=said)
        assert said == [f"{run_id} is published already", f"{run_id} is published already"]
        assert lake.unfinished() == {} and content(lake, run_id) == whole[1]


def test_data_are_sent_once(machine, batched, source, s3):
    share(machine("one"), batched, source, 1)
    before = len(s3.asked)
    for index in range(2, COUNT + 1):
        with s3.counting() as counts:
            share(machine("two"), batched, source, index)
        assert counts["PUT"] == 10 and counts["GET"] <= 8 and counts["LIST"] <= 3  # in two parts
    written = [key for method, key in s3.asked[before:] if method == "PUT" and ".parquet" in key]
    before = len(s3.asked)
    with s3.counting() as counts:
        share(machine("three"), batched, source, None)
    assert counts["GET"] <= 2 * COUNT + 8 and counts["PUT"] == 3 and counts["LIST"] <= 3
    asked = s3.asked[before:]
    assert written and len(set(written)) == len(written)
    data = [key for method, key in asked if method == "PUT" and ".parquet" in key]
    assert [key.split("/lake/")[1].split("/")[0] for key in data] == ["labels"]
    assert not [key for method, key in asked if method == "GET" and "activations" in key]


def test_of_two_who_read_one_shard_the_first_counts(machine, batched, source, whole, monkeypatch):
    """The second finds that out when it is done, and takes the first's."""
    share(machine("first"), batched, source, 1)
    for index in (2, 3, 4):
        share(machine("first"), batched, source, index)
    taken = []
    send = SharedRun.send

    def late(self, number):
        if not taken:
            taken.append(number)
            share(machine("first"), batched, source, 5)
            machine("second")
        send(self, number)

    monkeypatch.setattr(SharedRun, "send", late)
    share(machine("second"), batched, source, 5)
    assert taken
    lake = machine("second")
    run_id = share(lake, batched, source, None)
    assert content(lake, run_id) == whole[1] and check.check(lake, deep=True) == []
    monkeypatch.setattr(survey, "GRACE", -1)
    assert survey.survey(lake.remote).left == []  # nothing of the second's is there


@pytest.mark.parametrize("moment", ["upload", "put", "fetch"])
def test_a_machine_that_stops_anywhere_goes_on(
    machine, batched, source, whole, moment, monkeypatch
):
    owner, name = {
        "upload": (shared.SharedRun, "_upload"),
        "put": (store, "packed"),
        "fetch": (shared.SharedRun, "_unpack"),
    }[moment]
    for index in (1, 2, 4):
        share(machine("other"), batched, source, index)

    def stop(*_, **__):
        raise KeyboardInterrupt

    lake = machine("stops")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            share(lake, batched, source, 4 if moment == "fetch" else 5)
    assert missing(lake, whole[0]) == [3, 5]
    with monkeypatch.context() as patch:
        patch.setattr(dataset_run._Shards, "_read_batch", fails_if_read_again(moment, 5))
        share(machine("stops"), batched, source, 5)
    share(machine("other"), batched, source, 3)
    lake = machine("stops")
    assert content(lake, share(lake, batched, source, None)) == whole[1]
    assert check.check(lake) == []


def fails_if_read_again(moment, index):
    """Reads a batch, but none of the part that the machine had finished when it stopped."""
    read = dataset_run._Shards._read_batch

    def reads(self, run, batch, proof):
        assert moment == "fetch" or batch.shard != index - 1
        read(self, run, batch, proof)

    return reads


def test_too_early_and_deleted(machine, batched, source, whole):
    with pytest.raises(AlabError, match="there are no shards of d\n"):
        share(machine("one"), batched, source, None)
    for index in (1, 3):
        share(machine(f"m{index}"), batched, source, index)
    lake = machine("one")
    with pytest.raises(AlabError, match=r"lacks 3 of its 5 shards: 2, 4, 5\n.*--shard 2/5"):
        share(lake, batched, source, None)
    ((run_id, *_, there),) = removal.stopped(lake)[1]
    assert (run_id, there) == (whole[0], "2 of 5: 1, 3")
    sizes = lake.remote.of_run(run_id).values()
    assert removal.remove(lake, [run_id]) >= sum(entry.size for entry in sizes) > 1000
    assert lake.unfinished() == {} and names(lake) == []
    lake = machine("m1")  # which has shard 1 of the run that is gone
    share(lake, batched, source, 2)
    assert missing(lake, run_id) == [1, 3, 4, 5]
    lake = machine("m3")  # which has shard 3, and does not come to it again
    assert list(lake.unfinished()) == [run_id]
    removal.remove(lake, [run_id])
    for name in ("m1", "m3"):
        lake = machine(name)
        lake.run_ids()
        lake.sweep()
        assert lake.unfinished() == {} and not [p for p in lake.staging.iterdir() if p.is_dir()]


def test_deleted_while_it_is_finished(machine, batched, source, whole, monkeypatch):
    """Nothing is kept that could be published later, without its data."""
    for index in range(1, COUNT + 1):
        share(machine("one"), batched, source, index)
    publish = Remote.publish

    def late(self, *arguments):
        removal.remove(machine("two"), [whole[0]])
        machine("one")
        publish(self, *arguments)

    monkeypatch.setattr(Remote, "publish", late)
    lake = machine("one")
    with pytest.raises(AlabError, match=f"{whole[0]} was deleted"):
        share(lake, batched, source, None)
    monkeypatch.setattr(Remote, "publish", publish)
    check.repair(lake)
    assert lake.run_ids() == [] and lake.unfinished() == {} and check.check(lake) == []
    for index in range(1, COUNT + 1):
        share(lake, batched, source, index)
    assert content(lake, share(lake, batched, source, None)) == whole[1]


def test_killed_between_two_who_read_one_shard(machine, batched, source, whole, monkeypatch):
    """The second was told that the first was there, and dies before it has done anything about it."""
    for index in (1, 2, 3, 4):
        share(machine("first"), batched, source, index)
    put, told = ObjectStore.put, []

    def late(self, name, data, version):
        if "shard-" in name and not told:
            told.append(name)
            share(machine("first"), batched, source, 5)
            machine("second")
            assert put(self, name, data, version) is None
            raise KeyboardInterrupt
        return put(self, name, data, version)

    monkeypatch.setattr(ObjectStore, "put", late)
    with pytest.raises(KeyboardInterrupt):
        share(machine("second"), batched, source, 5)
    lake = machine("second")
    run_id = share(lake, batched, source, None)  # by the one that has another shard 5 on its disk
    assert content(lake, run_id) == whole[1] and check.check(lake, deep=True) == []


@pytest.mark.parametrize("what", ["scenario", "weights"])
def test_what_changed_is_refused_by_every_machine(machine, batched, source, what, monkeypatch):
    from prompts_alone import make

    share(machine("one"), batched, source, 1)
    request = make(positions=["last"], sites=["hidden_out"]) if what == "scenario" else None
    if what == "weights":
        monkeypatch.setitem(batched[0].__dict__, "weights_hash", "f" * 32)
    for which in (2, None):
        with pytest.raises(AlabError, match=f"{what}.* changed since d_.*-of-5 was begun"):
            share(machine("two"), batched, source, which, request)


def test_an_index_that_lacks_what_is_begun(machine, batched, source, monkeypatch):
    """As after a kill between the claim and the index."""
    share(machine("one"), batched, source, 1)
    lake = machine("two")
    (run_id,) = lake.unfinished()
    lake.remote.change(lambda index: index.pop("begun"))
    assert lake.unfinished() == {}
    (problem,) = check.check(lake)
    assert problem.where == run_id and "read in shards" in problem.message
    monkeypatch.setattr(survey, "GRACE", -1)
    check.repair(lake)  # and nothing of it is swept, however old
    assert list(lake.unfinished()) == [run_id] and check.check(lake) == []
    lake.remote.change(lambda index: index.pop("begun"))
    share(machine("three"), batched, source, 2)  # whoever works on it tells the index too
    assert list(lake.unfinished()) == [run_id]
    assert missing(lake, run_id) == [3, 4, 5]


def test_who_deletes_while_others_read(machine, batched, source, monkeypatch):
    share(machine("one"), batched, source, 1)
    lake = machine("two")
    (run_id,) = lake.unfinished()
    name = f"lake/metadata/run={run_id}/manifest"
    data, version = lake.remote.objects.get(name)
    assert json.loads(data)["shards"] == COUNT
    lake.remote.objects.put(name, b"gone", version)
    with pytest.raises(ConflictError, match="another process is deleting"):
        share(machine("three"), batched, source, 2)


def test_a_shard_belongs_to_the_claim_that_it_was_read_for(
    machine, batched, source, whole, monkeypatch
):
    """The run is deleted and begun anew, with other weights, while a machine reads a shard of it."""
    share(machine("one"), batched, source, 1)
    send, times = SharedRun.send, []

    def late(self, number):
        if not times:
            times.append(number)
            removal.remove(machine("two"), [whole[0]])
            with monkeypatch.context() as patch:
                patch.setitem(batched[0].__dict__, "weights_hash", "f" * 32)
                share(machine("two"), batched, source, 2)
            machine("one")
        send(self, number)

    monkeypatch.setattr(SharedRun, "send", late)
    with pytest.raises(ConflictError, match="published or deleted while this shard was read"):
        share(machine("one"), batched, source, 5)
    lake = machine("two")
    assert missing(lake, whole[0]) == [1, 3, 4, 5]
    with pytest.raises(AlabError, match="weights changed"):  # by what is begun now
        share(machine("one"), batched, source, 3)
    removal.remove(lake, [whole[0]])
    assert names(lake) == []


def test_killed_before_it_is_noted_that_a_shard_is_sent(
    machine, batched, source, whole, monkeypatch
):
    create = store.create

    def dies(path):
        if path.name == shared.SENT:
            raise KeyboardInterrupt
        return create(path)

    for index in (1, 2, 3, 4):
        share(machine("other"), batched, source, index)
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", dies)
        with pytest.raises(KeyboardInterrupt):
            share(machine("one"), batched, source, 5)
    share(machine("one"), batched, source, 5)
    lake = machine("one")
    assert content(lake, share(lake, batched, source, None)) == whole[1]
    assert check.check(lake, deep=True) == []


def test_two_who_finish_at_once(machine, batched, source, whole, monkeypatch):
    for index in range(1, COUNT + 1):
        share(machine("one"), batched, source, index)
    publish, times = Remote.publish, []

    def late(self, *arguments):
        times.append(1)
        if len(times) == 1:
            assert share(machine("two"), batched, source, None) == whole[0]
            machine("one")
        publish(self, *arguments)

    monkeypatch.setattr(Remote, "publish", late)
    assert share(machine("one"), batched, source, None) == whole[0]
    for name in ("one", "two", "three"):
        lake = machine(name)
        assert content(lake, whole[0]) == whole[1] and check.check(lake, deep=True) == []
    assert len([name for name in names(lake) if "/labels/" in name]) == 1


def test_nothing_is_taken_from_a_process_that_reads(machine, batched, source, whole):
    """Its run was deleted elsewhere and begun anew; on its own machine others want to go on."""
    share(machine("one"), batched, source, 1)
    lake = machine("one")
    held = lake.join(whole[0], lake.unfinished()[whole[0]], 2)
    (held.folder / "shards" / ".00001").mkdir()
    removal.remove(machine("two"), [whole[0]])
    share(machine("two"), batched, source, 1)
    with pytest.raises(ConflictError, match="another process is reading"):
        share(machine("one"), batched, source, 3)
    lake.sweep()
    assert (held.folder / "shards" / ".00001").is_dir()
    held.release()
    share(machine("one"), batched, source, 3)
    assert missing(lake, whole[0]) == [2, 4, 5]


def test_a_store_that_refuses_to_delete(machine, batched, source, whole, s3):
    share(machine("one"), batched, source, 1)
    lake = machine("one")
    s3.refuse = lambda method, key: "AccessDenied" if method == "PUT" else None
    with pytest.raises(AlabError, match="AccessDenied"):
        removal.remove(lake, [whole[0]])
    s3.refuse = lambda method, key: None
    assert list(lake.unfinished()) == [whole[0]]
    removal.remove(lake, [whole[0]])
    assert lake.unfinished() == {} and names(lake) == []


def test_an_index_that_has_what_is_gone(machine, batched, source, whole):
    share(machine("one"), batched, source, 1)
    lake = machine("one")
    request = lake.unfinished()[whole[0]]
    removal.remove(lake, [whole[0]])
    lake.remote.change(lambda index: index["begun"].update({whole[0]: request}))
    (problem,) = check.check(lake)
    assert "it is gone" in problem.message
    check.repair(lake)
    assert lake.unfinished() == {} and check.check(lake) == []
