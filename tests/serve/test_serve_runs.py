"""The list of runs, and what is told of one: found, sorted, chosen, read, deleted."""

import json
from contextlib import contextmanager

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from browser import executable
from pages_in_browser import LOOKS, Visit, served
from report_pages import edit
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog, removal
from warehouse.lake.lake import Lake
from warehouse.serve import tasks

HOSTILE = "</script><img src=x onerror=alert(1)>"
LABELS = ("joy", HOSTILE, "calm\u202efear")
PAGES = (
    "/?sort=size&order=up",
    "/run/latest:lensed",
    "/run/latest:lensed/lens",
    "/run/latest:lensed/residual?step=2",
    "/run/latest:lensed/neuron?layer=1&neuron=3",
    "/run/latest:lensed/references?at=1&metric=mae",
    "/run/latest:bare",
    "/run/latest:bare/lens",
    "/run/latest:bare/neuron",
    "/run/latest:bare/references",
    "/run/latest:rows",
)
browsed = pytest.mark.skipif(executable() is None, reason="no Chromium on the path")


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("runs") / "lab")
    make_run(lake, "bare", Shape(activations=False, attention=False, outputs=False, labels=()))
    make_dataset(lake, "rows")
    make_run(lake, "lensed", Shape(lens=True, labels=LABELS), seed=3, model_id=HOSTILE)
    catalog.sync(lake)
    return lake


@pytest.fixture(scope="module")
def service(lake):
    with served(lake) as service:
        yield service


@contextmanager
def asking(service):
    """A client that is signed in."""
    origin = service.address.partition("/?")[0]
    with httpx.Client(base_url=origin, headers={"Origin": origin}, timeout=60) as client:
        client.get(service.address)
        yield client


@pytest.fixture
def client(service):
    with asking(service) as client:
        yield client


@pytest.fixture
def visit(browser, service):
    visit = Visit(browser, service)
    yield visit
    visit.page.close()


@browsed
@pytest.mark.browser
@LOOKS
def test_pages_are_whole(browser, service, width, dark):
    visit = Visit(browser, service, width=width, dark=dark)
    for path in PAGES:
        visit.open(path)
        visit.page.wait_for_selector("[aria-busy]", state="detached")
        states = visit.draw()
        if states.get(""):  # what was drawn above moved it out of sight
            states = visit.draw()
        assert not states.get("failed") and not states.get(""), (path, states)
        assert visit.problems == [], path
        assert not visit.overflows(), path
        assert width == 400 or visit.findings() == [], path
    visit.page.close()


@browsed
@pytest.mark.browser
@pytest.mark.parametrize("part", ["residual", "neuron", "tensor", "references", "lens"])
def test_what_a_control_has_not_is_not_asked_for(visit, part):
    visit.open(f"/run/latest:lensed/{part}?site=bogus&layer=99")
    site, layer = (visit.page.locator(f'[data-set="{name}"]') for name in ("site", "layer"))
    assert f"site={site.input_value()}" in visit.page.url and "bogus" not in visit.page.url
    assert not layer.count() or f"layer={layer.input_value()}" in visit.page.url
    assert not visit.draw().get("failed") and visit.problems == []


def names_shown(client, **asked) -> list[str]:
    text = client.get("/", params=asked).text
    return [
        part.partition('"')[0].rpartition("_")[0] for part in text.split('name="ref" value="')[1:]
    ]


@pytest.mark.parametrize(("asked", "names"), [
    ({}, ["lensed", "rows", "bare"]),
    ({"order": "up"}, ["bare", "rows", "lensed"]),
    ({"sort": "run", "order": "up"}, ["bare", "lensed", "rows"]),
    ({"sort": "run", "order": "down"}, ["rows", "lensed", "bare"]),
    ({"sort": "prompts"}, ["rows", "lensed", "bare"]),
    ({"sort": "no such column"}, ["lensed", "rows", "bare"]),
    ({"scenario": "bare"}, ["bare"]),
    ({"model": HOSTILE}, ["lensed"]),
    ({"q": "MESSAGE lensed"}, ["lensed"]),
    ({"q": "message reply"}, ["lensed", "bare"]),
    ({"q": "message nowhere"}, []),
    ({"q": "  "}, ["lensed", "rows", "bare"]),
    ({"q": "%' OR 1=1 --"}, []),
    ({"limit": "1"}, ["lensed"]),
    ({"limit": "-4"}, ["lensed"]),
])  # fmt: skip
def test_runs_are_found_and_sorted(client, asked, names):
    assert names_shown(client, **asked) == names


def test_pages_of_what_was_not_kept_are_not_offered(tmp_path):
    lake = Lake(tmp_path / "lab")
    means = make_dataset(lake, "means", rows=20, sites=("hidden_out", "attn_out")).run_id
    removal.remove(lake, [means], activations_only=True)
    bare = Shape(activations=False, attention=False, outputs=False)
    states, unread = (make_run(lake, name, bare) for name in ("states", "unread"))
    steps = lake.dataset("metadata", unread) / "steps.parquet"
    pq.write_table(pq.read_table(steps, partitioning=None).slice(0, 0), steps)
    edit(lake, unread, "steps")
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        desk = tasks.Desk(lake, db)
        has = {
            run: json.loads(tasks.data(desk, "run", {"run": run}, "json"))[0]["has"]
            for run in (means, states, unread)
        }
    assert [run for run in has if "residual" in has[run]] == [states]
    with served(lake) as service, asking(service) as client:
        page = client.get(f"/run/{states}/tokens").text
        assert 'value="surprise"' in page and 'value="norm"' not in page


def test_bad_numbers_are_told(client):
    assert client.get("/", params={"limit": "many"}).status_code == 400
    assert client.get("/run/nothing").status_code == 404
    assert client.get("/run/nothing/lens").status_code == 404
    assert "deleted since" in client.get("/run/nothing", headers={"Accept": "text/html"}).text
    assert client.get("/report?run=nothing").status_code == 404
    assert client.get("/run/latest/lens?prompt=x").status_code == 400


@browsed
@pytest.mark.browser
def test_the_list_follows_the_words_and_keeps_what_is_chosen(visit):
    page = visit.open("/").page
    page.get_by_label("Find").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert page.locator("#compare-chosen").is_disabled()
    page.get_by_label("Find").fill("bare")
    page.locator("#runs tbody tr").nth(1).wait_for(state="detached")
    assert "q=bare" in page.url
    page.locator("#runs [name=ref]").check()
    assert page.locator("#compare-chosen").inner_text() == "Compare the 2 chosen"
    page.locator("#runs thead").get_by_text("MB").click()
    page.wait_for_url("**sort=size**")
    assert page.locator("[aria-sort=descending]").inner_text().startswith("MB")
    page.locator("#compare-chosen").click()
    page.wait_for_url("**/compare?**")
    assert page.url.count("ref=") == 2 and "lensed" in page.url and "bare" in page.url


def test_facts_are_files_too(client):
    facts = client.get("/run/latest:lensed/run.json").json()
    assert facts["scenario"] == {"name": "lensed"} and facts["num_layers"] == 3
    assert yaml.safe_load(client.get("/run/latest:lensed/scenario.yaml").text) == {"name": "lensed"}
    body = client.get("/run/latest:lensed/card").json()
    assert "What was found" in body["html"] and "<img" not in body["html"]
    report = client.get("/report", params={"run": ["latest:lensed", "latest:bare"]})
    assert report.headers["content-disposition"].startswith("attachment")
    assert report.text.startswith("<!doctype html>") and HOSTILE not in report.text


def tensors(lake: Lake, run_id: str, layer: int) -> dict[str, np.ndarray]:
    """A layer's tensors as pyarrow reads them: site to (positions, width)."""
    (folder,) = (lake.root / "activations" / f"run={run_id}").glob(f"*/layer={layer:02d}")
    table = pq.read_table(folder / "part-0.parquet", partitioning=None)
    order = np.argsort(table["position"].to_numpy())
    return {
        site: np.stack([np.array(v, "f4") for v in table[site].to_pylist()])[order]
        for site in ("hidden_out", "mlp_down_in")
    }


def test_neurons_are_those_of_the_tensors(client, lake):
    run_id = client.get("/run/latest:lensed/run.json").json()["run_id"]
    values = tensors(lake, run_id, 1)["mlp_down_in"]
    at = {"run": run_id, "layer": 1, "site": "mlp_down_in"}
    rows = client.get("/data/neuron_values.json", params=at | {"neuron": 3}).json()
    np.testing.assert_allclose([r["activation"] for r in rows], values[:, 3], rtol=1e-6)
    order = np.argsort(-np.abs(values[:, 3]))
    rows = client.get("/data/neuron_strongest.json", params=at | {"neuron": 3}).json()
    assert [r["position"] for r in rows] == order[:20].tolist()
    peaks = client.get("/data/neuron_peaks.json", params=at).json()
    most = np.abs(values).max(0)
    assert [r["neuron"] for r in peaks] == np.argsort(-most)[:24].tolist()
    for r in peaks:
        assert r["position"] == np.abs(values[:, r["neuron"]]).argmax()
        assert r["peak"] == pytest.approx(values[r["position"], r["neuron"]], rel=1e-6)
    for neuron in (-1, 24):
        assert client.get("/data/neuron_values.json", params=at | {"neuron": neuron}).json() == []


@pytest.mark.parametrize("at", ["mean", "1"])
def test_messages_against_references(client, lake, at):
    run_id = client.get("/run/latest:lensed/run.json").json()["run_id"]
    table = pq.read_table(lake.root / "states" / f"run={run_id}", partitioning=None).to_pylist()
    states = {
        (r["state"], r["label"] or r["state_index"], r["layer"]): np.array(r["vector"], "f8")
        for r in table
        if r["site"] == "attn_out"
    }
    asked = {"run": run_id, "site": "attn_out", "at": at}
    rows = client.get("/data/messages_references.json", params=asked).json()
    assert len(rows) == 6 * 3
    for r in rows:
        cosines = []
        for layer in range(3) if at == "mean" else [1]:
            a = states["snapshot", r["message_index"], layer]
            b = states["reference", r["label"], layer]
            cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert r["cosine"] == pytest.approx(np.mean(cosines), rel=1e-6)


@browsed
@pytest.mark.browser
def test_the_lens_is_walked_and_pinned(visit):
    page = visit.open("/run/latest:lensed/lens").page
    page.locator("[role=grid] td").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(".lens aside ol li")
    assert page.locator(".lens aside p").first.inner_text().startswith("Layer 1 after t12")
    assert page.locator(".lens aside ol li").count() == 3
    page.keyboard.press("Enter")
    assert "pins=12" in page.url and page.locator("#pinned li").count() == 1
    page.get_by_label("Rank").check(force=True)
    page.wait_for_selector("[role=grid] td >> text=/^0$/")
    page.reload()
    page.wait_for_selector("td.pinned")
    page.locator("#pinned button").click()
    assert page.locator("#pinned li").count() == 0 and "pins" not in page.url
    assert visit.problems == []


@pytest.fixture
def small(tmp_path) -> Lake:
    lake = Lake(tmp_path / "lab")
    for seed, name in enumerate(("stays", "goes")):
        make_run(lake, name, Shape(), seed=seed)
    catalog.sync(lake)
    return lake


def test_removing_is_asked_rightly(small):
    with served(small) as service, asking(service) as client:
        run_id = client.get("/run/latest:goes/run.json").json()["run_id"]
        for body in ({}, {"what": "everything"}, {"what": None}, {"what": ["run"]}):
            assert client.post(f"/run/{run_id}/remove", json=body).status_code == 400
        for name in ("latest:goes", run_id[:-3], "..", "nothing"):
            answer = client.post(f"/run/{name}/remove", json={"what": "run"})
            assert answer.status_code == 404
        headers = {"Origin": "http://elsewhere.example"}
        answer = client.post(f"/run/{run_id}/remove", json={"what": "run"}, headers=headers)
        assert answer.status_code == 403 and len(small.run_ids()) == 2
        assert (
            client.post(f"/run/{run_id}/remove", json={"what": "activations"}).json()["freed"] > 0
        )
        assert client.get("/data/neuron_values.json", params={
            "run": run_id, "layer": 0, "site": "q", "neuron": 0}).json() == []  # fmt: skip
        with catalog.connect(small) as db:  # a reader of the catalog is told, and nothing is lost
            db.execute("SELECT 1")
        assert client.post(f"/run/{run_id}/remove", json={"what": "run"}).status_code == 200
        assert client.get(f"/run/{run_id}").status_code == 404
        assert json.loads(client.get("/data/runs_facets.json").text)[0]["runs"] == 1


@browsed
@pytest.mark.browser
def test_a_run_goes_while_it_is_looked_at(browser, small):
    with served(small) as service:
        visit, other = Visit(browser, service), Visit(browser, service)
        other.open("/run/latest:goes/residual")
        page = visit.open("/run/latest:goes").page
        page.get_by_role("button", name="Delete the run").click()
        page.get_by_role("button", name="Keep everything").click()
        assert len(small.run_ids()) == 2
        page.get_by_role("button", name="Drop activations").click()
        page.locator("#drop [data-remove]").click()
        page.wait_for_selector("[data-dialog=drop]", state="detached")
        page.get_by_role("button", name="Delete the run").click()
        page.locator("#delete [data-remove]").click()
        page.wait_for_url("**/")
        assert page.locator("#runs tbody tr").count() == 1
        other.page.locator("[data-set=step]").focus()
        other.page.keyboard.press("ArrowRight")
        other.page.wait_for_selector("figure .note.warn")
        assert "there is no run" in other.page.locator("figure .note.warn").first.inner_text()
        other.page.reload()
        assert "deleted since" in other.page.locator("main").inner_text()
        # A figure that was on its way when its run was deleted is told so.
        assert [one for one in visit.problems if "404 (Not Found)" not in one] == []
        visit.page.close()
        other.page.close()
