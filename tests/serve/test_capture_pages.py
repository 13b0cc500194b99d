"""Writing a scenario, launching it and following it, in a real browser; hostile words everywhere."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from browser import executable
from pages_in_browser import LOOKS, Visit, served
from queues import long_dataset, make_place, new_lake, scenario

from warehouse.serve.service import Service

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium on the path"),
]
EVIL = "</script><script>alert(1)</script>\u202e\"'&{{ 7*7 }}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("capture_pages"))
    (place / "scenarios").mkdir()
    text = scenario(place, "evil", prompt={"messages": [{"role": "user", "content": EVIL}]})
    (place / "scenarios" / "evil.yaml").write_text(f"# {EVIL}\n{text}")
    return place


@pytest.fixture(scope="module")
def service(place):
    with served(new_lake(place)) as service:
        yield service


@pytest.fixture
def visit(browser, service):
    visit = Visit(browser, service)
    yield visit
    assert visit.problems == []
    visit.page.close()


def until(visit: Visit, expression: str, seconds: int = 60) -> None:
    for _ in range(seconds * 10):
        if visit.page.evaluate(expression):
            return
        visit.page.wait_for_timeout(100)
    raise AssertionError(f"{expression}: {visit.page.inner_text('main')[:2000]}")


def begin(visit: Visit, path: str = "/capture?file=evil.yaml") -> None:
    visit.open(path)
    until(visit, "!document.querySelector('#launch .main').disabled")


def text(visit: Visit) -> str:
    return visit.page.input_value("#yaml")


@contextmanager
def client(service: Service) -> Iterator[httpx.Client]:
    """A script that asks as a page of the server does."""
    origin = service.address.partition("/?")[0]
    with httpx.Client(base_url=origin, headers={"Origin": origin}, timeout=60) as client:
        client.get(service.address, follow_redirects=True)
        yield client


@LOOKS
@pytest.mark.parametrize("path", ["/capture?file=evil.yaml", "/jobs", "/models"])
def test_a_page_is_whole(browser, service, path, width, dark):
    visit = Visit(browser, service, width=width, dark=dark).open(path)
    visit.page.evaluate("document.querySelectorAll('details').forEach((f) => { f.open = true; })")
    assert visit.problems == [] and not visit.overflows() and visit.findings() == []
    visit.page.close()


def test_an_edit_of_the_form_changes_its_value_only(visit):
    begin(visit)
    before = text(visit)
    assert before.startswith(f"# {EVIL}\n# mine\n")
    visit.page.fill("[data-path='name']", "other")
    until(visit, "document.getElementById('yaml').value.includes('name: other')")
    assert text(visit) == before.replace("name: evil", "name: other")
    visit.page.fill("[data-path*='content']", f"new {EVIL}\nlines")
    until(visit, "document.getElementById('yaml').value.includes('lines')")
    assert text(visit).startswith(f"# {EVIL}\n# mine\nname: other\n")
    visit.page.get_by_text("Add a message").click()
    until(visit, "document.querySelectorAll('#prompts .message').length === 2")
    visit.page.get_by_label("remove message 2").click()
    until(visit, "document.querySelectorAll('#prompts .message').length === 1")
    visit.page.get_by_text("Add a conversation").click()
    until(visit, "document.querySelectorAll('#prompts .prompt').length === 2")
    assert visit.page.locator("[data-path*='content']").first.input_value() == f"new {EVIL}\nlines"


def test_an_edit_of_the_yaml_changes_the_form(visit):
    begin(visit)
    good = text(visit)
    visit.page.fill("#yaml", good.replace("max_new_tokens: 6", "max_new_tokens: 9"))
    until(
        visit, "document.querySelector(\"[data-path='generation.max_new_tokens']\").value === '9'"
    )
    visit.page.fill("#yaml", good + "\ncapture: [\n")
    until(visit, "document.querySelector('.scenario fieldset').disabled")
    assert visit.page.input_value("[data-path='name']") == "evil"  # the form stays legible
    assert visit.page.locator("#launch .main").is_disabled()
    visit.page.fill("#yaml", good.replace("do_sample", "do_smaple"))
    until(visit, "document.querySelector('#mistakes').textContent.includes('do_smaple')")
    visit.page.click("#mistakes button")
    line = visit.page.evaluate(
        "(() => { const e = document.getElementById('yaml'); return e.value.slice(e.selectionStart, e.selectionEnd); })()"
    )
    assert "do_smaple" in line


def test_the_estimate_asks_the_model_and_a_dataset_shows_its_rows(visit, place):
    (place / "scenarios" / "rows.yaml").write_text(long_dataset(place, rows=30))
    begin(visit, "/capture?file=rows.yaml")
    until(visit, "document.querySelector('#preview table')")
    shown = visit.page.inner_text("#preview")
    assert (
        "The first of 30 rows" in shown and "I see word word ." in shown and "key, words" in shown
    )
    until(visit, "document.querySelector('#estimate').textContent.includes('on disk')")


def test_save_and_launch_and_open_the_run(visit, place, service):
    begin(visit)
    visit.page.fill("#launch [name='name']", "mine")
    visit.page.click("#save")
    until(visit, "document.querySelector('#saved').textContent === 'saved as mine.yaml'")
    assert (place / "scenarios" / "mine.yaml").read_text() == text(visit)
    visit.page.click("#save")
    until(visit, "document.querySelector('#saved').textContent.includes('is there already')")
    visit.problems = [one for one in visit.problems if "409" not in one]  # the browser says it too
    visit.page.click("#launch .main")
    visit.page.wait_for_url("**/jobs/*")
    until(visit, "document.querySelector('#job').dataset.state === 'done'")
    run = visit.page.inner_text("[data-part='runs'] bdi")
    assert visit.findings() == [] and not visit.overflows()
    assert visit.page.inner_text("[data-part='replies'] .bubble").strip()
    assert run in visit.page.inner_text("[data-part='log']")
    with client(service) as ask:
        (job,) = [one for one in ask.get("/api/jobs").json() if one["runs"] == [run]]
        assert job["state"] == "done" and job["name"] == "evil"
        stream = ask.get(f"/api/jobs/{job['id']}/events").text
        blocks = [block.split("\n") for block in stream.strip().split("\n\n")]
        events = [e for b in blocks if b[0].startswith("id:") for e in json.loads(b[1][6:])]
        assert {"start", "begun", "token", "run", "end"} <= {event["event"] for event in events}
        assert blocks[-1][0] == "event: over"
        last = blocks[0][0].removeprefix("id: ")
        later = ask.get(f"/api/jobs/{job['id']}/events", headers={"Last-Event-ID": last}).text
        assert "id:" not in later and "event: over" in later
    begin(visit, f"/capture?run={run}")
    assert visit.page.locator("[data-path*='content']").first.input_value() == EVIL


def test_cancel_offers_what_is_done_of_a_dataset(visit, place, service):
    with client(service) as ask:
        made = ask.post("/api/jobs", json={"yaml": long_dataset(place)})
        assert made.status_code == 201
        visit.page.goto(visit.origin + made.json()["address"])
        until(visit, "!document.querySelector('[data-part=bar]').hidden")
        until(visit, "document.querySelector('[data-part=stage]').innerText.includes('prompts:')")
        (active,) = ask.get("/api/jobs?active=1").json()
        assert active["state"] == "running" and active["name"] == "rows"
        visit.page.click("[data-part='cancel']")
        until(visit, "document.querySelector('#job').dataset.state === 'cancelled'")
        until(visit, "!document.querySelector('[data-part=kept]').hidden")
        visit.page.click("[data-part='discard']")
        until(visit, "document.querySelector('[data-part=kept]').hidden")
        assert ask.get(f"/api/jobs/{active['id']}").json()["kept"] == []
        again = ask.post(f"/api/jobs/{active['id']}/resume", json={})
        assert again.status_code == 409 and "nothing to go on with" in again.json()["error"]
        assert ask.post(f"/api/jobs/{active['id']}/cancel", json={}).status_code == 409


def test_what_a_model_is_made_of(visit, place):
    visit.open(f"/models?model={place / 'model'}")
    until(visit, "!document.querySelector('#model pre').hidden")
    assert "mlp_down_out = output (32)" in visit.page.inner_text("#model pre")
    visit.open("/models?model=%3C/script%3E")
    until(visit, "document.querySelector('#model').textContent.includes('there is no model')")
    visit.problems = [one for one in visit.problems if "404" not in one]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/capture/check", {}, 400),
        ("/api/capture/check", {"yaml": 5}, 400),
        ("/api/capture/check", {"yaml": "a: 1", "edits": 3}, 400),
        ("/api/capture/check", {"yaml": "a: 1", "edits": [{"path": [True]}]}, 200),
        (
            "/api/capture/check",
            {"yaml": "a: .nan\nb: 123456789012345678901234567890\n1: 2020-01-01"},
            200,
        ),
        ("/api/capture/check", {"yaml": "a: 0x" + "f" * 5000}, 200),
        ("/api/capture/save", {"yaml": "a: 1"}, 400),
        ("/api/capture/save", {"yaml": "a: 1", "name": "../x"}, 400),
        ("/api/jobs", {"yaml": "a: 1"}, 400),
        ("/api/jobs/..%2F..%2Fx/cancel", {}, 404),
        ("/api/jobs/x/discard", {}, 404),
    ],
)
def test_wrong_requests_are_told(service, path, body, status):
    with client(service) as ask:
        answer = ask.post(path, json=body)
        assert answer.status_code == status, answer.text
        assert status == 200 or answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    ["/capture?file=../lab/alab.duckdb", "/capture?file=/etc/passwd", "/capture?example=../x", "/jobs/..%2Fx", "/jobs/x",
     "/api/jobs/%00", "/api/models/layers?model=--help", "/api/models/layers?model=/etc", "/capture?file=%00"],
)  # fmt: skip
def test_nothing_of_an_address_is_a_path(service, path):
    with client(service) as ask:
        assert ask.get(path).status_code == 404
