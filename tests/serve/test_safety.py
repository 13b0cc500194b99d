"""No query of a page can write, with the kernel's help or without it, and it sees the lake alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from asker import state

from warehouse.catalog.catalog import Catalog
from warehouse.query import landlock
from warehouse.serve import worker

#: What earlier viewers let through, as they were measured; `$lake` is the lake, `$run` a file of a run.
WRITING = (
    "COPY (SELECT 1) TO '$lake/x.csv'",
    "COPY (SELECT 1) TO '$run'",
    "COPY (SELECT 1 AS a) TO '$run' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPORT DATABASE '$lake/dump'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '$lake/x.csv'",
    "COPY (PIVOT (SELECT 1 AS a, 2 AS b) ON a USING sum(b)) TO '$lake/x.csv'",
    "WITH a AS (COPY (SELECT 1) TO '$lake/x.csv') SELECT 1",
    "WITH a AS (COPY (SELECT 1) TO '$lake/x.csv') PIVOT (SELECT 1 AS a, 2 AS b) ON a USING sum(b)",
    "PREPARE p AS COPY (SELECT 1) TO '$lake/x.csv'; EXECUTE p",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1')); COPY (SELECT 1) TO '$lake/x.csv'",
    "CALL enable_logging(storage = 'file', storage_path = '$lake/logs'); SELECT 42",
    "ATTACH '$lake/new.duckdb' AS n (READ_WRITE); CREATE TABLE n.t AS SELECT 1",
    "SET temp_directory = '$lake/spill'; SELECT 1",
    "PRAGMA profiling_output = '$lake/p.json'; PRAGMA enable_profiling = 'json'; SELECT 42",
)
#: What would read, or ask for, more than the lake.
FOREIGN = (
    "FROM read_csv('/etc/passwd')",
    "FROM read_text('$lake/../../secret.txt')",
    "FROM glob('/etc/*')",
    "ATTACH '$lake/../alab.duckdb' AS own",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SELECT getenv('HOME')",
    "SET enable_external_access = true; SELECT 1",
    "SET lock_configuration = false; SELECT 1",
    "SET memory_limit = '64GB'; SELECT 1",
    "FROM read_parquet('http://127.0.0.1:1/x.parquet')",
)
#: A worker whose gate in words is open: what is left is the kernel, and DuckDB's own locks.
OPEN_GATE = """
import warehouse.query.readonly as readonly
readonly.refuse = lambda sql: None
from warehouse.serve import worker
worker.main()
"""


def filled(text: str, lake) -> str:
    run = next(lake.dataset("states", lake.run_ids()[0]).glob("*.parquet"))
    return text.replace("$lake", str(lake.root)).replace("$run", str(run))


class Process:
    """A worker's process, talked to as the server does."""

    def __init__(self, script: str, spill: Path):
        spill.mkdir()
        command = [sys.executable, "-c", script, str(spill)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, do: str, **arguments) -> dict:
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        head = json.loads(self._process.stdout.readline())
        return json.loads(self._process.stdout.read(head["size"])) if "size" in head else head

    def query(self, sql: str) -> dict:
        return self.ask("query", sql=sql, params={}, limit=10, form="cells")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def copied(conversations, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("copy") / "catalog.duckdb"
    Catalog(conversations).copy(path)
    return path


@pytest.fixture(scope="module")
def bound(conversations, copied, tmp_path_factory):
    """A locked worker whose statements are not looked at: the kernel alone keeps it from writing."""
    process = Process(OPEN_GATE, tmp_path_factory.mktemp("bound") / "spill")
    place = {"warehouse": str(conversations.warehouse), "copy": str(copied), "locked": True}
    if not process.ask("open", **place):
        process.close()
        pytest.skip("this kernel has no Landlock")
    yield process
    process.close()


@pytest.mark.parametrize("sql", WRITING)
def test_the_kernel_keeps_a_query_from_writing(bound, conversations, sql):
    before = state(conversations.warehouse)
    answer = bound.query(filled(sql, conversations))
    assert state(conversations.warehouse) == before
    assert "error" in answer and answer["kind"] == "AlabError", answer


@pytest.mark.parametrize("sql", FOREIGN)
def test_a_query_sees_the_lake_alone(bound, conversations, sql):
    (conversations.warehouse.parent / "secret.txt").write_text("secret")
    answer = bound.query(filled(sql, conversations))
    assert "error" in answer and "secret" not in json.dumps(answer.get("cells", ""))


@pytest.mark.parametrize("sql", WRITING)
def test_without_the_kernel_what_is_known_to_write_is_refused(
    conversations, copied, tmp_path, monkeypatch, sql
):
    monkeypatch.setattr(landlock, "restrict", lambda folders: False)
    own = worker.Worker(tmp_path)
    own.open(str(conversations.warehouse), str(copied), True)
    before = state(conversations.warehouse)
    with pytest.raises(Exception, match=r"."):
        own.answer(
            {
                "do": "query",
                "sql": filled(sql, conversations),
                "params": {},
                "limit": 9,
                "form": "cells",
            }
        )
    assert state(conversations.warehouse) == before


def test_a_query_reads_the_lake_and_spills(bound, conversations):
    answer = bound.query("SELECT count(*) AS n, max(cosine) AS c FROM intra_run('latest:talk')")
    assert answer["cells"][0][0] > 0
    big = "SELECT hash(range) AS a, range AS b FROM range(4000000) ORDER BY a LIMIT 1"
    assert len(bound.query(big)["cells"]) == 1
