import shutil
import subprocess
import sys

import duckdb
import pyarrow.parquet as pq
import pytest
from synthetic import Shape, make_run

from warehouse.catalog import catalog, check
from warehouse.catalog import removal as storage
from warehouse.errors import AlabError, NotThereError, explain

SMALL = Shape(layers=2, steps=2, messages=2, labels=("joy",))


def on_disk(lake) -> int:
    return sum(path.stat().st_size for path in lake.root.glob("[!.]*/**/*.parquet"))


def rows(lake, relation: str, run_id: str) -> int:
    with catalog.connect(lake) as db:
        return db.execute(f"SELECT count(*) FROM {relation} WHERE run_id = ?", [run_id]).fetchone()[
            0
        ]


def test_removing_a_run_frees_all_of_it(lake):
    gone, kept = make_run(lake, "gone", SMALL), make_run(lake, "kept", SMALL)
    catalog.sync(lake)
    before = on_disk(lake)
    freed = storage.remove(lake, [gone])
    assert freed == before - on_disk(lake) > 0
    assert lake.run_ids() == [kept]
    assert not list(lake.root.glob(f"*/run={gone}"))
    assert rows(lake, "runs", gone) == rows(lake, "states", gone) == rows(lake, "tokens", gone) == 0
    assert check.check(lake) == []


def test_dropping_activations_keeps_the_run(lake):
    run_id, other = make_run(lake, "one", SMALL), make_run(lake, "two", SMALL)
    catalog.sync(lake)
    states, tokens = rows(lake, "states", run_id), rows(lake, "tokens", run_id)
    before = on_disk(lake)
    freed = storage.remove(lake, [run_id], activations_only=True)
    assert freed == before - on_disk(lake) > 0
    assert sorted(p.parent.name for p in lake.root.glob(f"[!.]*/run={run_id}")) == [
        "metadata",
        "states",
    ]
    assert (rows(lake, "states", run_id), rows(lake, "tokens", run_id)) == (states, tokens)
    assert rows(lake, "activations", run_id) == rows(lake, "attention", run_id) == 0
    assert rows(lake, "activations", other) > 0
    with catalog.connect(lake) as db:
        query = "SELECT _has('activations', ?), _has('states', ?), (SELECT bytes FROM runs WHERE run_id = ?)"
        size = lake.dataset("states", run_id).joinpath("part-0.parquet").stat().st_size
        assert db.execute(query, [run_id] * 3).fetchone() == (False, True, size)
        assert db.execute("SELECT count(*) FROM activations_of(?)", [run_id]).fetchone() == (0,)
    assert check.check(lake) == []
    assert storage.remove(lake, [run_id], activations_only=True) == 0


def test_nothing_goes_while_another_process_reads(lake, monkeypatch):
    run_id = make_run(lake, "one", SMALL)
    catalog.sync(lake)
    script = "import duckdb, sys; db = duckdb.connect(sys.argv[1], read_only=True); print(1, flush=True); input()"
    command = [sys.executable, "-c", script, str(lake.catalog)]
    sync = catalog.Catalog.sync
    monkeypatch.setattr(
        catalog.Catalog, "sync", lambda self, **options: sync(self, timeout=0.2, **options)
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.stdout.readline()
        with pytest.raises(catalog.CatalogBusyError):
            storage.remove(lake, [run_id])
        assert lake.run_ids() == [run_id]
        reader.communicate(b"\n")


def test_a_failed_change_leaves_the_catalog_as_it_was(lake, monkeypatch):
    run_id = make_run(lake, "one", SMALL)
    catalog.sync(lake)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            storage.remove(lake, [run_id], activations_only=True)
    with duckdb.connect(str(lake.catalog), read_only=True) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert check.check(lake) == []


def test_an_empty_name_means_no_run(two_runs):
    with pytest.raises(AlabError, match="there is no run ''"):
        storage.resolve(two_runs[0], [""])


@pytest.mark.parametrize(
    "read",
    [
        open,
        pq.ParquetFile,
        pq.read_table,
        lambda path: duckdb.sql(f"FROM read_parquet('{path}')"),
        lambda path: duckdb.sql(f"FROM read_parquet('{path.parent}/*.parquet')"),
    ],
)
def test_who_had_begun_to_read_is_told_that_it_was_deleted(lake, read):
    run_id = make_run(lake, "goes", SMALL)
    path = lake.files(run_id)[0]
    storage.remove(lake, [run_id])
    with pytest.raises((OSError, duckdb.IOException)) as caught:
        read(path)
    told = explain(caught.value)
    assert isinstance(told, NotThereError) and f"run={run_id}/" in told.message
    assert f"{run_id} or some of its data was deleted meanwhile" in told.hint
