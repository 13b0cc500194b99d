"""The catalog follows the lake and the SQL library, and leaves a user's own objects alone."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import pytest
from synthetic import Shape, make_run

import warehouse
from warehouse.catalog import catalog, runs
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake

SMALL = Shape(layers=2, attention=False, outputs=False)


@pytest.fixture
def one(lake):
    run_id = make_run(lake, "one", SMALL)
    catalog.sync(lake)
    return lake, run_id


def write(lake, *statements):
    with duckdb.connect(str(lake.catalog)) as db:
        for statement in statements:
            db.execute(statement)


def ask(lake, sql):
    with catalog.connect(lake) as db:
        return db.execute(sql).fetchall()


def test_an_older_library_is_brought_up_to_date(one):
    lake, run_id = one
    write(
        lake,
        "UPDATE catalog_info SET sql_digest = 'older', alab_version = '0.0.1'",
        "CREATE OR REPLACE MACRO cosine(a, b) AS 'the old one'",
        "DROP MACRO TABLE intra_run",
        "UPDATE catalog_info SET objects = '[\"DROP MACRO IF EXISTS renamed_since\"]'",
        "CREATE MACRO renamed_since() AS 1",
    )
    assert ask(lake, "SELECT cosine([1, 0], [1, 0])") == [(1.0,)]
    assert len(ask(lake, "SELECT * FROM intra_run('latest')")) == 8
    assert ask(lake, "SELECT run_id FROM runs") == [(run_id,)]
    assert ask(
        lake, "SELECT count(*) FROM duckdb_functions() WHERE function_name = 'renamed_since'"
    ) == [(0,)]
    assert ask(lake, "SELECT sql_digest <> 'older' FROM catalog_info") == [(True,)]


def test_a_newer_layout_is_refused(one):
    lake, _ = one
    write(lake, f"UPDATE catalog_info SET format = {catalog.FORMAT + 1}, alab_version = '9.0'")
    with (
        pytest.raises(AlabError, match=r"written by alab 9\.0, which is newer"),
        catalog.connect(lake),
    ):
        pass


def test_objects_of_a_user_survive(one):
    lake, _ = one
    write(
        lake,
        "CREATE TABLE my_notes AS SELECT 'keep' AS note",
        "CREATE MACRO my_macro(x) AS cosine(x, x)",
        "CREATE VIEW my_view AS SELECT run_id FROM runs",
        "UPDATE catalog_info SET sql_digest = 'older'",
    )
    second = make_run(lake, "two", SMALL)
    assert ask(lake, "SELECT note, my_macro([1, 2]) FROM my_notes") == [("keep", 1.0)]
    assert (second,) in ask(lake, "FROM my_view")


def test_a_moved_warehouse_is_mended(one, tmp_path):
    lake, _ = one
    expected = ask(lake, "SELECT count(*) FROM states")
    moved = Lake(tmp_path / "moved [here]")
    shutil.move(lake.warehouse, moved.warehouse)
    assert ask(moved, "SELECT count(*) FROM states") == expected
    with duckdb.connect(str(moved.catalog), read_only=True) as plain:
        assert plain.execute("SELECT count(*) FROM states").fetchall() == expected


def test_runs_come_and_go_with_the_lake(one):
    lake, first = one
    second = make_run(lake, "two", SMALL)
    assert ask(lake, "SELECT run_id FROM runs ORDER BY 1") == [(first,), (second,)]
    assert ask(lake, "SELECT DISTINCT run_id FROM states_of('latest')") == [(second,)]
    lake.remove(second)
    assert ask(lake, "SELECT DISTINCT run_id FROM states_of('latest')") == [(first,)]
    assert ask(lake, "SELECT DISTINCT run_id FROM steps") == [(first,)]


def test_everything_binds_in_an_empty_warehouse(lake):
    lake.prepare()
    for view in (
        "activations",
        "attention",
        "outputs",
        "states",
        "runs",
        "inter_run_all()",
        "intra_run('latest')",
    ):
        assert ask(lake, f"FROM {view}") == []


def test_reading_does_not_write(one):
    lake, _ = one
    ask(lake, "SELECT 1")
    before = lake.catalog.stat().st_mtime_ns
    ask(lake, "SELECT count(*) FROM states")
    assert lake.catalog.stat().st_mtime_ns == before
    with catalog.connect(lake) as db, pytest.raises(duckdb.Error, match="read-only"):
        db.execute("DELETE FROM runs")


def test_a_catalog_that_is_being_written_is_read_from_a_copy(one):
    lake, first = one
    code = f"import duckdb, sys; db = duckdb.connect({str(lake.catalog)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        second = make_run(lake, "second", SMALL)
        with catalog.connect(lake, timeout=0.1) as db:
            assert db.execute("SELECT run_id FROM runs ORDER BY ALL").fetchall() == [
                (first,),
                (second,),
            ]
            assert (
                db.execute(
                    "SELECT count(*) FROM activations WHERE run_id = ?", [second]
                ).fetchone()[0]
                > 0
            )
        with pytest.raises(catalog.CatalogBusyError, match="another process holds"):
            catalog.sync(lake, timeout=0.1)
        holder.stdin.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_another_connection_of_this_process_is_no_damage(one, read_only):
    lake, first = one
    with duckdb.connect(str(lake.catalog), read_only=read_only) as held:
        second = make_run(lake, "second", SMALL)
        with catalog.connect(lake, timeout=0.1) as db:
            assert db.execute("SELECT run_id FROM runs ORDER BY ALL").fetchall() == [
                (first,),
                (second,),
            ]
        assert held.execute("SELECT run_id FROM runs").fetchall() == [(first,)]


def test_a_path_with_the_word_lock_is_no_lock(tmp_path):
    lake = Lake(tmp_path / "clock" / "lab")
    make_run(lake, "one", SMALL)
    lake.catalog.write_bytes(b"no database" * 999)
    with pytest.raises(AlabError, match="alab rebuild"), catalog.connect(lake):
        pass


def test_what_was_committed_before_a_kill_is_in_the_copy(one):
    lake, _ = one
    code = (
        f"import duckdb, os; db = duckdb.connect({str(lake.catalog)!r}); "
        "db.execute('create table mine as select 42 as a'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert Path(f"{lake.catalog}.wal").exists()
    lab = warehouse.open(lake.warehouse)
    assert lab.sql("from mine").fetchall() == [(42,)]


READ_ONLY = """
import os, sys
import duckdb, pyarrow.parquet
from warehouse.catalog import catalog
from warehouse.catalog import check
from warehouse.catalog import removal as storage
from warehouse.errors import explain
from warehouse.lake.lake import Lake
if os.getuid() == 0:
    os.setuid(65534)
lake = Lake(sys.argv[1])
with catalog.connect(lake) as db:
    print(db.execute("SELECT count(DISTINCT run_id) FROM activations").fetchone()[0])
for change in (check.rebuild, lambda lake: storage.remove(lake, lake.run_ids()), lambda lake: lake.stage("x")):
    try:
        change(lake)
    except Exception as error:
        print(explain(error).message)
"""


@pytest.mark.parametrize("registered", [0, 1, 2])
def test_a_warehouse_that_can_only_be_read(tmp_path_factory, registered):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        lake = Lake(Path(folder) / "lab")
        for number in range(2):
            make_run(lake, f"run{number}", SMALL)
            if number < registered:
                catalog.sync(lake)
        Path(folder).chmod(0o755)
        for path in Path(folder, "lab").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        lake.warehouse.chmod(0o555)
        try:
            command = [sys.executable, "-c", READ_ONLY, str(lake.warehouse)]
            shown = subprocess.run(
                command, capture_output=True, text=True, cwd=Path(catalog.__file__).parents[2]
            )
        finally:
            for path in [lake.warehouse, *lake.warehouse.rglob("*/")]:
                path.chmod(0o755)
    rows = shown.stdout.splitlines()
    assert rows[0] == "2", shown.stderr
    assert len(rows) == 4
    assert all("can only be read" in row or "Permission denied" in row for row in rows[1:])


def test_find_run(two_runs):
    lake, alpha, beta = two_runs
    with catalog.connect(lake) as db:
        assert runs.find_run(db, "latest") == beta
        assert runs.find_run(db, "alp") == runs.find_run(db, alpha) == alpha
        with pytest.raises(AlabError, match="there is no run 'gamma'; the newest are"):
            runs.find_run(db, "gamma")
