"""The server among everything else: ports, captures and removals while it looks, damage, two at once."""

import http.client
import signal
import socket
import subprocess
import sys
import time

import pytest
from pages_in_browser import served
from synthetic import Shape, make_run

import warehouse
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.serve import service as services

ALAB = [sys.executable, "-c", "from warehouse.cli.commands import main; main()"]
SMALL = Shape(layers=2, steps=2, messages=3, labels=("joy",))


class Browser:
    """Asks a server as a signed-in browser does."""

    def __init__(self, address: str):
        self.host = address.split("/")[2]
        self.cookie = ""
        self.cookie = self.get("/" + address.rpartition("/")[2])[2]["set-cookie"].partition(";")[0]

    def get(self, path: str) -> tuple[int, str, dict]:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", path, headers={"Cookie": self.cookie, "Accept": "text/html"})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}

    def remove(self, run_id: str) -> tuple[int, str]:
        """Ask for the end of a run, as the page does."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        headers = {"Cookie": self.cookie, "Origin": f"http://{self.host}"}
        headers["Content-Type"] = "application/json"
        connection.request("POST", f"/run/{run_id}/remove", '{"what": "run"}', headers)
        answer = connection.getresponse()
        told = answer.status, answer.read().decode()
        connection.close()
        return told


@pytest.fixture
def lake(tmp_path) -> Lake:
    lake = Lake(tmp_path / "lab")
    make_run(lake, "first", SMALL)
    catalog.sync(lake)
    return lake


def run_alab(lake: Lake, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run([*ALAB, "-w", lake.warehouse, *command], capture_output=True, text=True)


def eventually(browser: Browser, path: str, test) -> bool:
    """Whether a page comes to be as it should, as the lake is looked at again each second."""
    deadline = time.monotonic() + 20
    while not test(*browser.get(path)[:2]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_runs_come_and_go_while_a_page_is_open(lake):
    with served(lake) as service:
        browser = Browser(service.address)
        assert "first_" in browser.get("/")[1]
        second = make_run(lake, "second", SMALL, seed=1)
        assert catalog.Catalog(lake).register() == ""  # nobody has to wait for the server
        assert eventually(browser, "/", lambda status, body: second in body)
        removed = run_alab(lake, "rm", second, "--yes")
        assert removed.returncode == 0, removed.stderr
        assert eventually(browser, f"/run/{second}/residual", lambda status, body: status == 404)
        _, body, _ = browser.get(f"/run/{second}/residual")
        assert f"there is no run &#39;{second}&#39;" in body


def test_a_warehouse_without_runs_says_what_to_do(tmp_path):
    lake = Lake(tmp_path / "lab")
    lake.prepare()
    with served(lake) as service:
        status, body, _ = Browser(service.address).get("/")
        assert status == 200 and "alab capture" in body


def test_a_damaged_run_leaves_the_rest_as_it_was(lake):
    other = make_run(lake, "other", SMALL, seed=2)
    with served(lake) as service:
        browser = Browser(service.address)
        states = next(lake.dataset("activations", other).rglob("*.parquet"))
        states.write_bytes(b"PAR1 nothing of use PAR1")
        status, body, _ = browser.get(f"/data/residual_pass?run={other}&prompt=0&step=0")
        assert status == 400 and states.name in body
        first = next(run for run in lake.run_ids() if run != other)
        assert browser.get(f"/data/residual_pass?run={first}&prompt=0&step=0")[0] == 200
        assert browser.get("/")[0] == 200


def test_a_run_that_cannot_be_removed_now_stays(lake):
    """Another process has the catalog open, or changes the run: 409, and later it goes."""
    (run_id,) = lake.run_ids()
    hold = (
        "import duckdb, sys; db = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    )
    with served(lake) as service:
        browser = Browser(service.address)
        other = subprocess.Popen(
            [sys.executable, "-c", hold, lake.catalog],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        other.stdout.readline()
        status, body = browser.remove(run_id)
        assert (status, str(lake.catalog) in body) == (409, True)
        other.communicate()
        with lake.hold(run_id):
            status, body = browser.remove(run_id)
        assert (status, "another process is changing" in body) == (409, True)
        assert lake.run_ids() == [run_id]
        assert browser.remove(run_id)[0] == 200
    assert lake.run_ids() == []


def test_two_servers_look_at_one_warehouse(lake):
    with served(lake) as one, served(lake) as two:
        for service in (one, two):
            assert "first_" in Browser(service.address).get("/")[1]
        assert one.address != two.address


def test_a_port_in_use_is_named(lake):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = run_alab(lake, "serve", "--port", str(port))
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert f"the port {port} is in use" in told.stderr and "--port 0" in told.stderr


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_a_host_that_is_every_address_is_none(lake, host):
    with pytest.raises(AlabError, match="every address") as refused:
        services.Service(lake, host, 0)
    assert refused.value.exit_code == 2


def test_a_host_that_this_machine_has_not_is_told(lake):
    with pytest.raises(AlabError, match=r"cannot listen at 203\.0\.113\.1"):
        services.Service(lake, "203.0.113.1", 0)


def test_another_host_says_what_that_means(lake, monkeypatch):
    said = []
    monkeypatch.setattr(services, "is_loopback", lambda host: False)
    monkeypatch.setattr(services.Service, "run", lambda self: None)
    services.serve(lake, "127.0.0.1", 0, said.append)
    assert "/?token=" in said[0] and "not encrypted" in said[1]


def test_no_warehouse_is_told(tmp_path):
    with pytest.raises(AlabError, match="there is no warehouse"):
        services.Service(Lake(tmp_path / "none"))


def test_the_command_prints_the_address_and_ends_quietly(lake):
    process = subprocess.Popen(
        [*ALAB, "-w", lake.warehouse, "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    browser = None
    address = process.stdout.readline().strip()
    deadline = time.monotonic() + 60
    while browser is None and time.monotonic() < deadline:
        try:
            browser = Browser(address)
        except ConnectionError:
            time.sleep(0.1)
    assert "first_" in browser.get("/")[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_files_of_the_users_folder_are_taken_for_no_library(lake, tmp_path, monkeypatch):
    (tmp_path / "duckdb.py").write_text("raise SystemExit('a file of the user was imported')")
    monkeypatch.chdir(tmp_path)
    with served(lake) as service:
        assert "first_" in Browser(service.address).get("/")[1]


def test_a_notebook_has_it_too(lake):
    service = warehouse.open(lake.warehouse).serve()
    assert "first_" in Browser(service.address).get("/")[1]
    assert f'href="{service.address}"' in service._repr_html_()
    service.stop()
