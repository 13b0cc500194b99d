"""`alab sql` only reads: what writes is refused in words where it is recognised, and by the kernel where it is not."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from synthetic import Shape, make_run

import warehouse
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.query import landlock, readonly

ALAB = [sys.executable, "-c", "from warehouse.cli.commands import main; main()"]

#: Each would write a file, a folder or a setting; `$x` is a place where anybody may, `$lake` the lake.
WRITING = (
    "COPY (SELECT 1) TO '$x/a.csv'",
    "copy runs to '$x/a.parquet' (format parquet)",
    "FROM runs; COPY runs TO '$x/a.csv'",
    "/* x */ COPY (SELECT 1) TO '$x/a.csv' -- y",
    "COPY (SELECT range % 2 AS a, range AS b FROM range(10)) TO '$x/parts' (FORMAT parquet, PARTITION_BY (a))",
    "COPY (FROM range(1000000)) TO '$x/threads' (FORMAT parquet, PER_THREAD_OUTPUT)",
    "WITH a AS (COPY (SELECT 1) TO '$x/a.csv') SELECT 1",
    "WITH a AS MATERIALIZED (COPY (SELECT 1) TO '$x/a.csv') SELECT 1",
    "with a as (\n  copy -- comment\n (select 1) to '$x/a.csv') from a",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '$x/a.csv'",
    "EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '$x/a.csv'",
    "PREPARE p AS COPY (SELECT 1) TO '$x/a.csv'; EXECUTE p",
    "COPY (SELECT 1) TO '$lake/states/a.csv'",
    "COPY (SELECT 1) TO '$victim'",
    "EXPORT DATABASE '$x/dump'",
    "EXPORT DATABASE '$x/dump' (FORMAT parquet)",
    "PRAGMA profiling_output = '$x/profile.json'; PRAGMA enable_profiling = 'json'; SELECT 42",
    "SET profiling_output = '$x/profile.json'; SET enable_profiling = 'json'; SELECT 42",
    "SET temp_directory = '$x/spill'; SET memory_limit = '50MB'; SELECT max(a) FROM (SELECT random() AS a, range FROM range(9000000) ORDER BY a)",
    "SET secret_directory = '$x/secrets'; CREATE PERSISTENT SECRET s (TYPE http, bearer_token 'x')",
    "CREATE OR REPLACE PERSISTENT SECRET s (TYPE http, bearer_token 'x')",
    "SET log_query_path = '$x/log.txt'; SELECT 42",
    "CALL enable_logging(storage = 'file', storage_path = '$x/logs'); SELECT 42",
    "FROM enable_logging(storage = 'file', storage_path = '$x/logs')",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs",
    "SET extension_directory = '$x/ext'; SELECT 42",
    "SET GLOBAL home_directory = '$x'",
    "RESET temp_directory",
    "ATTACH '$x/new.duckdb' AS n",
    "ATTACH '$x/new.duckdb' AS n (READ_WRITE)",
    "attach if not exists '$x/new.duckdb' (read_only false); create table new.t as select 1",
    "ATTACH '$victim_db' AS n (READ_WRITE); CREATE TABLE n.t AS SELECT 1",
)
#: These DuckDB refuses by itself, since the catalog is open for reading.
REFUSED = (
    "CREATE TABLE t AS SELECT 1",
    "DELETE FROM runs",
    "DROP VIEW states",
    "IMPORT DATABASE '$x/dump'",
)
READING = (
    "SELECT 1 AS copy, 'COPY x TO y' AS b, \"copy\" FROM (SELECT 2 AS copy) AS t",
    "SELECT copy FROM (SELECT 1 AS copy)",
    "SELECT string_agg(copy ORDER BY copy), count(copy) FROM (SELECT 'a' AS copy)",
    "CREATE TEMP TABLE copy AS SELECT 3 AS a; INSERT INTO copy VALUES (4); FROM copy",
    "SET VARIABLE x = 3; SELECT getvariable('x')",
    "SET threads = 1; SET memory_limit = '1GB'; SELECT 3",
    "SET search_path = 'main'; SELECT 3",
    "PRAGMA database_size",
    "ATTACH '$victim_db' AS n (READ_ONLY); SELECT a FROM n.t",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE p AS SELECT 5; EXECUTE p",
    "LOAD json; SELECT 1",
    "SELECT 1 AS export, 2 AS install, 3 AS attach",
)
#: What takes more memory than the tests that ask it have.
SPILLS = "SELECT hash(range) AS a, range AS b FROM range(6000000) ORDER BY a LIMIT 5900000 OFFSET 5899999"


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("readonly") / "lab")
    make_run(lake, "one", Shape(layers=2, steps=2, messages=3, labels=("joy",)))
    catalog.sync(lake)
    return lake


@pytest.fixture
def place(lake, tmp_path):
    """A place that anybody may write to, and what stands in the statements for it and for other files."""
    (tmp_path / "home").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "victim.txt").write_text("as it was")
    with duckdb.connect(str(tmp_path / "victim.duckdb")) as db:
        db.execute("CREATE TABLE t AS SELECT 42 AS a")

    def fill(sql: str) -> str:
        for name, path in (("$x", tmp_path / "x"), ("$lake", lake.root), ("$victim_db", tmp_path / "victim.duckdb"),
                           ("$victim", tmp_path / "victim.txt")):  # fmt: skip
            sql = sql.replace(name, str(path))
        return sql

    return tmp_path, fill


def alab(lake: Lake, place: Path, sql: str, *options: str) -> subprocess.CompletedProcess:
    command = [*ALAB, "-w", lake.warehouse, "sql", sql, *options]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=place,
        env=os.environ | {"HOME": str(place / "home")},
    )


def everything(*folders: Path) -> dict:
    """Every file with its size and time, but those of queries that are running."""
    paths = [
        path for folder in folders for path in folder.rglob("*") if ".staging" not in path.parts
    ]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("sql", WRITING)
def test_what_writes_is_told_before_it_runs(place, sql):
    with pytest.raises(AlabError, match="would write") as refused:
        readonly.refuse(place[1](sql))
    assert "alab sql only reads" in refused.value.hint


@pytest.mark.parametrize("sql", READING)
def test_what_reads_is_not_refused(lake, place, sql):
    done = alab(lake, place[0], place[1](sql))
    assert done.returncode == 0, done.stderr


def test_refused_in_two_lines_with_the_next_move(lake, place):
    folder, fill = place
    before = everything(folder, lake.warehouse)
    for sql in ("COPY (SELECT 1) TO '$x/a.csv'", *REFUSED):
        done = alab(lake, folder, fill(sql))
        assert done.returncode == 1, sql
        assert "alab sql only reads" in done.stderr, (sql, done.stderr)
        assert len(done.stderr.splitlines()) == 2
    assert everything(folder, lake.warehouse) == before
    assert "-o FILE" in alab(lake, folder, "COPY (SELECT 1) TO 'a.csv'").stderr


#: Runs each statement as `alab sql` does, with nothing recognised beforehand.
UNRECOGNISED = """
import json, sys
from warehouse.query import run as query
from warehouse.query import readonly
from warehouse.errors import explain
from warehouse.lake.lake import Lake
readonly.refuse = lambda sql: None
told = []
for sql in json.load(sys.stdin):
    try:
        with query.ask(Lake(sys.argv[1]), sql) as result:
            list(result.rows)
        told.append("done")
    except Exception as error:
        told.append(str(explain(error)))
print(json.dumps(told))
"""

needs_landlock = pytest.mark.skipif(
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from warehouse.query.landlock import restrict; exit(not restrict([]))",
        ]
    ).returncode,
    reason="the kernel has no Landlock",
)


@needs_landlock
@pytest.mark.parametrize("logs", [False, True], ids=["statements", "logs"])
def test_the_kernel_refuses_what_nobody_recognised(lake, place, logs):
    """Each statement runs in full; DuckDB itself ends where it cannot write its log while it closes."""
    folder, fill = place
    before = everything(folder, lake.warehouse)
    asked = [sql for sql in WRITING if ("logging" in sql) == logs]
    done = subprocess.run(
        [sys.executable, "-c", UNRECOGNISED, str(lake.warehouse)], input=json.dumps([fill(sql) for sql in asked]),
        capture_output=True, text=True, cwd=folder, env=os.environ | {"HOME": str(folder / "home")},
    )  # fmt: skip
    assert everything(folder, lake.warehouse) == before
    if not logs:
        assert done.returncode == 0, done.stderr
        told = dict(zip(asked, json.loads(done.stdout), strict=True))
        copies = [sql for sql in told if "COPY" in sql.upper() and "$lake" not in sql]
        assert [sql for sql in copies if "alab sql only reads" not in told[sql]] == []


@needs_landlock
def test_only_the_thread_of_a_query_is_bound(lake, place):
    folder, _ = place
    refused: list[OSError] = []

    def bound():
        assert landlock.restrict([folder / "x"])
        (folder / "x" / "here").write_text("allowed")
        for change in (lambda: (folder / "a").write_text("a"), lambda: (folder / "victim.txt").unlink(),
                       lambda: (folder / "new").mkdir(), lambda: os.truncate(folder / "victim.txt", 0),
                       lambda: (folder / "x" / "here").rename(folder / "there"), lambda: (folder / "l").symlink_to("x")):  # fmt: skip
            try:
                change()
            except OSError as error:
                refused.append(error)
        assert (folder / "victim.txt").read_text() == "as it was"

    thread = threading.Thread(target=bound)
    thread.start()
    thread.join()
    assert len(refused) == 6
    (folder / "a").write_text("this thread may")


def test_landlock_elsewhere_says_no(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert landlock.restrict([]) is False


def test_a_query_spills_and_leaves_nothing(lake, place):
    folder, _ = place
    done = alab(lake, folder, f"SET memory_limit = '60MB'; SET threads = 1; {SPILLS}")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 100002
    assert list(lake.staging.iterdir()) == []
    assert sorted(path.name for path in lake.warehouse.iterdir()) == ["alab.duckdb", "lake"]


def test_what_a_killed_query_left_is_swept(lake):
    (lake.staging / "query-0123").mkdir()
    (lake.staging / "query-0123" / "spilled.tmp").write_bytes(b"x" * 100)
    with catalog.connect(lake):
        assert list(lake.staging.iterdir()) == []


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_the_output_is_written(lake, place, suffix):
    folder, _ = place
    for output in (folder / f"out.{suffix}", folder / "new" / "folder" / f"out.{suffix}"):
        done = alab(lake, folder, "SELECT 42 AS a", "-o", str(output))
        assert done.returncode == 0, done.stderr
        assert (
            "42" in output.read_text()
            if suffix != "parquet"
            else pq.read_table(output).to_pylist() == [{"a": 42}]
        )
        assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []
    assert (folder / f"out.{suffix}").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_parquet_goes_through_a_pipe(lake, place):
    folder, _ = place
    command = f"{sys.executable} -c 'from warehouse.cli.commands import main; main()' -w {lake.warehouse} sql 'SELECT 42 AS a' --format parquet"
    for tail in (
        "> piped.parquet",
        "| cat > piped.parquet",
        "-o /dev/stdout > piped.parquet",
        "-o >(cat > piped.parquet); sleep 0.5",
    ):
        subprocess.run(["bash", "-c", f"{command} {tail}"], check=True, cwd=folder)
        assert pq.read_table(folder / "piped.parquet").to_pylist() == [{"a": 42}], tail
        (folder / "piped.parquet").unlink()


def test_python_spills_too(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lab = warehouse.open(lake.warehouse)
    db = lab._connection()
    db.execute("SET memory_limit = '60MB'; SET threads = 1")
    assert db.execute(SPILLS).fetchone() is not None
    del db, lab
    assert list(tmp_path.iterdir()) == []
