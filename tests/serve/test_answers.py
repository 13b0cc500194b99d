"""What a user's query is answered with, byte for byte what `alab sql` writes; and who has to wait for whom."""

import asyncio
import io
import json
import socket
import threading
import time

import pyarrow.parquet as pq
import pytest
from asker import Asker
from click.testing import CliRunner

from warehouse.cli.commands import main
from warehouse.serve import tasks, worker, workers

#: Values that JavaScript, JSON or Arrow has no word for.
ODD = """
    SELECT 9007199254740993 AS wide, 18446744073709551615::UBIGINT AS wider, sum(1) AS huge, 'nan'::DOUBLE AS nan,
        -1e308 * 10 AS low, '101'::BIT AS bits, INTERVAL 3 DAYS AS apart, TIMETZ '01:02:03+02' AS at, 1.50::DECIMAL(9, 2) AS dec,
        DATE 'infinity' AS never, 'ab'::BLOB AS blob, [1, NULL] AS list, {'a': INTERVAL 1 DAY} AS struct, NULL AS nothing,
        union_value(n := 5) AS either
"""


@pytest.fixture(scope="module")
def asker(service):
    return Asker(service)


def rows(asker, sql: str, form: str = "", **params):
    answer = asker.post(f"/api/sql{form}", {"sql": sql, "params": params})
    assert answer.status == 200, answer.body
    return answer.body


@pytest.mark.parametrize("form", ["json", "csv"])
def test_files_are_those_of_the_command_line(asker, conversations, form):
    done = CliRunner().invoke(main, ["-w", str(conversations.warehouse), "sql", ODD, "--format", form])  # fmt: skip
    assert done.exit_code == 0 and rows(asker, ODD, f".{form}").decode() == done.stdout


def test_cells_have_every_digit(asker):
    ((*cells,),) = (answer := json.loads(rows(asker, ODD)))["cells"]
    shown = dict(zip(answer["names"], cells, strict=True))
    assert (shown["wide"], shown["wider"], shown["huge"]) == ("9007199254740993", str(2**64 - 1), 1)
    assert (shown["nan"], shown["low"], shown["nothing"]) == ("nan", "-inf", None)
    assert (shown["bits"], shown["at"], shown["dec"]) == ("101", "01:02:03+02:00", "1.50")
    assert dict(zip(answer["names"], answer["types"], strict=True))["bits"] == "BIT"


def test_a_parameter_is_taken_to_the_last_digit(asker):
    assert json.loads(rows(asker, "SELECT $a + 1", a=2**53 + 1))["cells"] == [[str(2**53 + 2)]]


def test_parquet_has_words_for_what_arrow_has_not(asker):
    table = pq.read_table(io.BytesIO(rows(asker, ODD, ".parquet")))
    (row,) = table.drop_columns(["never"]).to_pylist()
    assert (row["bits"], row["apart"], row["at"]) == ("101", "3 days", "01:02:03+02")
    assert (row["wide"], row["either"], row["list"]) == (2**53 + 1, "5", [1, None])


def test_long_values_are_cut_and_large_files_refused(asker):
    ((text,),) = json.loads(rows(asker, "SELECT repeat('x', 1000000)"))["cells"]
    assert text.startswith("x" * tasks.CELL + "… (1,000,000") and len(text) < tasks.CELL + 40
    large = {"sql": "SELECT repeat('x', 1000000) FROM range(100)", "params": {}}
    answer = asker.post("/api/sql.csv", large)
    assert answer.status == 400 and b"these rows take 95 MB" in answer.body
    assert b"alab check" not in answer.body


@pytest.mark.parametrize("name", ["runs", "message_variants"])
def test_sums_can_be_drawn(asker, name):
    answer = asker.get(f"/data/{name}?run=latest&runs=latest&prompt=0", Cookie=asker.cookie)
    assert answer.status == 200 and json.loads(answer.body)["rows"] > 0, answer.body


def test_a_draft_whose_data_need_too_much_memory_is_told(asker, conversations):
    """A forgotten join in a dataset's query, while somebody types."""
    source = conversations.home / "rows.csv"
    source.write_text("a\n1\n")
    query = f"select i, repeat('x', 1000000) as a from range({worker.MOST // 500000}) t(i), source"
    text = json.dumps({"name": "d", "model": {"id": "x"}, "prompt": {"dataset": {"source": str(source), "query": query, "text": "{{ a }}"}}})  # fmt: skip
    answer = json.loads(asker.post("/api/capture/check", {"yaml": text}).body)
    assert "emory" in answer["preview"]["error"], answer
    assert asker.get("/", Cookie=asker.cookie).status == 200


def test_who_goes_away_is_not_worked_for(asker, monkeypatch):
    """Reports that nobody waits for any more would keep every page waiting."""
    monkeypatch.setattr(workers, "LONG", ())
    ended: list[str] = []

    async def slow(self, do, **arguments):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(do)
            raise

    monkeypatch.setattr(workers.Worker, "ask", slow)
    host, port = asker.host.split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(f"GET /report HTTP/1.1\r\nHost: {asker.host}\r\nCookie: {asker.cookie}\r\n\r\n".encode())  # fmt: skip
        time.sleep(0.3)
    until = time.monotonic() + 20
    while not ended and time.monotonic() < until:
        time.sleep(0.05)
    assert ended == ["report"]


def test_of_what_takes_long_there_is_one_at_a_time(asker, monkeypatch):
    running, most = [], []
    ask = workers.Worker.ask

    async def counted(self, do, **arguments):
        if do != "report":
            return await ask(self, do, **arguments)
        running.append(do)
        most.append(len(running))
        await asyncio.sleep(0.5)
        running.remove(do)
        return b"<html>"

    monkeypatch.setattr(workers.Worker, "ask", counted)
    threads = [
        threading.Thread(target=asker.get, args=("/report",), kwargs={"Cookie": asker.cookie})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert asker.get("/data/runs.json?runs=latest", Cookie=asker.cookie).status == 200
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
