"""A hub that does not answer is asked once, and one that answers is believed."""

import http.server
import threading

import pytest
from huggingface_hub import constants

from warehouse import scenario
from warehouse.errors import AlabError
from warehouse.models import hub, outline
from warehouse.models import loading as models


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What a hub that has nothing was asked, in order."""
    paths = []

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            paths.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *told):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    files = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield paths
    server.shutdown()
    server.server_close()


@pytest.fixture
def attempts(monkeypatch) -> list[str]:
    """Addresses that were asked where nothing listens."""
    from huggingface_hub.utils import get_session

    addresses, session = [], get_session()
    ask = session.request

    def request(method, address, **options):
        addresses.append(str(address))
        return ask(method, address, **options)

    monkeypatch.setattr(session, "request", request)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return addresses


def test_a_hub_that_is_not_there_is_asked_once(attempts):
    with pytest.raises(AlabError, match=r"cannot find 'some/model'.*which does not answer"):
        models.load(scenario.Model(id="some/model", device="cpu"))
    assert len(attempts) == 1
    with pytest.raises(AlabError, match="cannot read the config of some/model"):
        outline.outline("some/model")
    assert len(attempts) == 2
    assert not constants.HF_HUB_OFFLINE, "it may be there the next time"


def test_a_hub_that_answers_is_searched(asked):
    with pytest.raises(AlabError, match="looked for it as a directory and on the model hub"):
        models.load(scenario.Model(id="some/model", device="cpu"))
    assert any("some/model" in path for path in asked)


def test_directories_need_no_hub(attempts, tmp_path):
    with hub.reached(str(tmp_path), None) as online:
        assert online
    assert attempts == []


def test_who_forbids_the_hub_is_obeyed(asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.reached("some/model") as online:
        assert not online
    assert asked == []
    assert constants.HF_HUB_OFFLINE


def test_two_threads_leave_it_as_it_was(attempts):
    """One begins before the other and ends before it."""
    inside, go_on = threading.Event(), threading.Event()

    def first():
        with hub.reached("some/model"):
            inside.set()
            go_on.wait(10)

    def second():
        with hub.reached("some/other"):
            pass

    threads = [threading.Thread(target=work) for work in (first, second)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert not constants.HF_HUB_OFFLINE
