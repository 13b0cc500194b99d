import shutil

import duckdb
import pytest
from synthetic import Shape, make_run

from warehouse.catalog import catalog, check, runs
from warehouse.catalog import removal as storage
from warehouse.errors import AlabError
from warehouse.query import run as query

SMALL = Shape(layers=2, steps=2, messages=2, labels=("joy",))


@pytest.fixture
def two(lake):
    ids = make_run(lake, "one", SMALL), make_run(lake, "two", SMALL, seed=1)
    catalog.sync(lake)
    return lake, *ids


def kinds(lake) -> list[str]:
    return sorted({problem.kind for problem in check.check(lake)})


def contents(lake) -> dict[str, list]:
    with catalog.connect(lake) as db:
        tables = [*catalog.table_names(), "catalog_runs", "catalog_info"]
        return {t: sorted(db.execute(f"FROM {t}").fetchall(), key=repr) for t in tables}


def test_a_sound_warehouse_has_no_problem(two):
    assert check.check(two[0]) == []


def test_files_that_are_gone_short_changed_or_too_many(two):
    lake, one, two_ = two
    parts = sorted(lake.dataset("activations", one).rglob("*.parquet"))
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    states = lake.dataset("states", one) / "part-0.parquet"
    flipped = bytearray(states.read_bytes())
    flipped[200] ^= 1
    states.write_bytes(flipped)
    shutil.copy(states, states.with_name("copy.parquet"))
    found = {(p.kind, p.where.rpartition("/")[2]) for p in check.check(lake)}
    assert found == {
        ("missing", "part-0.parquet"), ("truncated", "part-0.parquet"), ("changed", "part-0.parquet"),
        ("stray", "copy.parquet"),
    }  # fmt: skip
    assert all(two_ not in problem.where for problem in check.check(lake))


def test_same_size_but_not_parquet_any_more(two):
    lake, one, _ = two
    part = next(lake.dataset("activations", one).rglob("*.parquet"))
    part.write_bytes(b"\0" * part.stat().st_size)
    assert kinds(lake) == ["damaged"]


@pytest.mark.parametrize("harm", ["cut", "gone", "random bytes"])
@pytest.mark.parametrize("table", ["runs", "files", "tokens"])
def test_a_run_with_damaged_metadata_is_left_out_and_named(two, table, harm, capsys):
    lake, one, other = two
    path = lake.dataset("metadata", one) / f"{table}.parquet"
    data = path.read_bytes()
    if harm != "gone":
        replacement = path.with_suffix(".new")
        replacement.write_bytes(
            data[:-10] if harm == "cut" else data[:20] + b"\xa5" * 60 + data[80:]
        )
        replacement.replace(path)
    else:
        path.unlink()
    with catalog.connect(lake) as db:
        assert db.execute("SELECT run_id FROM runs").fetchall() == [(other,)]
        with pytest.raises(AlabError, match=f"the metadata of {one} is damaged"):
            runs.find_run(db, one)
    with query.ask(lake, "SELECT 1") as result:
        hints = result.hints()
    assert hints == [f"the metadata of {one} is damaged, it is left out: alab check"]
    before = {path: path.read_bytes() for path in lake.files(one)}
    with pytest.raises(AlabError, match="is damaged; nothing was changed"):
        storage.remove(lake, [one], activations_only=True)
    assert {path: path.read_bytes() for path in lake.files(one)} == before
    problems = check.check(lake)
    assert {problem.kind for problem in problems} <= {"damaged", "truncated", "changed", "missing"}
    assert problems
    assert all(one in problem.where for problem in problems)
    assert check.rebuild(lake) == sorted([one, other])
    storage.remove(lake, [one])
    assert check.check(lake) == []


@pytest.mark.parametrize("apart", [pytest.param(29, marks=pytest.mark.soak), 40 * 29 + 1])
def test_a_flipped_bit_in_the_list_of_files_loses_nothing(two, apart):
    lake, one, other = two
    path = lake.dataset("metadata", one) / "files.parquet"
    data, before = (
        path.read_bytes(),
        {p for p in lake.root.rglob("*.parquet") if "metadata" not in str(p)},
    )
    rows = lake.metadata(one, "files").to_pylist()
    for at in range(0, len(data), apart):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        lake.catalog.unlink(missing_ok=True)
        with catalog.connect(lake) as db:
            found = {row[0] for row in db.execute("SELECT run_id FROM runs").fetchall()}
        assert found in ({one, other}, {other})
        if lake.sound_files(one) is None:
            assert one not in found
            with pytest.raises(AlabError, match="nothing was changed"):
                lake.drop(one, ["activations"])
            assert "damaged" in kinds(lake)
        else:
            assert lake.metadata(one, "files").to_pylist() == rows
        assert {p for p in lake.root.rglob("*.parquet") if "metadata" not in str(p)} == before


def test_latest_is_refused_where_the_latest_run_is_damaged(two):
    lake, one, other = two
    later = lake.stage("x").run_id  # an id of now
    folder = lake.dataset("metadata", later.replace("x_", "late_").replace("_20", "_99"))
    shutil.copytree(lake.dataset("metadata", one), folder)
    (folder / "runs.parquet").write_bytes(b"x")
    with catalog.connect(lake) as db:
        for name in ("latest", "late"):
            with pytest.raises(AlabError, match=r"late_.*damaged"):
                runs.find_run(db, name)
        assert runs.find_run(db, "two") == other


def test_orphans_and_unregistered_runs(two):
    lake, one, _ = two
    shutil.rmtree(lake.dataset("metadata", one))
    assert kinds(lake) == ["catalog", "orphan"]
    third = make_run(lake, "three", SMALL)
    assert [p.where for p in check.check(lake) if p.kind == "unregistered"] == [third]
    check.repair(lake)
    assert check.check(lake) == []
    assert not lake.dataset("states", one).exists()


def test_runs_being_written_are_no_orphans(lake):
    staged = lake.stage("live")
    lake.dataset("states", staged.run_id).mkdir(parents=True)
    assert check.orphans(lake) == []
    staged.discard()


def test_a_catalog_that_was_edited(two):
    lake, one, _ = two
    with duckdb.connect(str(lake.catalog)) as db:
        db.execute("UPDATE steps SET entropy = 0 WHERE run_id = ? AND step = 1", [one])
        db.execute("DROP TABLE top_tokens")
    found = [(p.where, p.message) for p in check.check(lake)]
    assert ("steps", f"lacks 1 rows of {one}") in found
    assert ("steps", f"has beside the lake's 1 rows of {one}") in found
    assert "top_tokens" in dict(found)


def test_a_catalog_that_is_no_database(two):
    lake = two[0]
    lake.catalog.write_bytes(b"not a database" * 1000)
    assert kinds(lake) == ["catalog"]
    with pytest.raises(AlabError, match="alab rebuild"), catalog.connect(lake):
        pass
    assert (
        catalog.Catalog(lake).register().startswith("cannot open the catalog")
    )  # what a capture goes on after
    check.rebuild(lake)
    assert check.check(lake) == []


def test_rebuild_restores_every_table(two):
    lake, *ids = two
    before = contents(lake)
    assert sum(map(len, before.values())) > 100
    lake.catalog.unlink()
    assert check.rebuild(lake) == sorted(ids)
    assert contents(lake) == before
    assert check.rebuild(lake) == sorted(ids)
    assert contents(lake) == before
    assert not [path for path in lake.warehouse.iterdir() if path.name.startswith(".")]


def test_no_warehouse(lake):
    for function in (check.check, check.rebuild):
        with pytest.raises(AlabError, match="there is no warehouse at"):
            function(lake)
