"""The page of a dataset: rows found and sorted, points framed, one row; with labels of every kind."""

import re

import httpx
import numpy as np
import pytest
from browser import executable
from pages_in_browser import LOOKS, Visit, served
from playwright.sync_api import expect
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

PAGE = "/run/latest/dataset"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("serve-dataset") / "lab")
    made = make_dataset(lake)
    catalog.sync(lake)
    return lake, made


@pytest.fixture(scope="module")
def service(made):
    with served(made[0]) as service:
        yield service


@pytest.fixture(scope="module")
def client(service):
    with httpx.Client(base_url=service.address.partition("/?")[0], follow_redirects=True) as client:
        client.get(service.address)
        yield client


def order(client, **values) -> list[int]:
    asked = {"run": "latest", "find": "", "sort": "", "way": "up"} | values
    rows = client.get("/data/dataset_order.json", params=asked).json()
    return [row["prompt_id"] for row in rows]


def test_rows_are_in_the_order_of_a_column_those_without_a_value_last(client, made):
    labels, prompts = made[1].labels, made[1].prompts
    assert order(client) == prompts
    for column in ("mood", "layer", "run"):
        values = labels[column].to_pylist()
        some = [p for p in prompts if values[p] is not None]
        none = [p for p in prompts if values[p] is None]
        assert order(client, sort=column) == sorted(some, key=lambda p: values[p]) + none
        down = order(client, sort=column, way="down")
        assert [values[p] for p in down] == sorted((values[p] for p in some), reverse=True) + [
            None
        ] * len(none)


def test_rows_are_found_by_every_word_of_their_text_or_labels(client, made):
    labels, prompts = made[1].labels, made[1].prompts
    moods = labels["mood"].to_pylist()
    assert order(client, find="CALM") == [p for p in prompts if moods[p] == "calm"]
    files = labels["filename"].to_pylist()
    both = [p for p in prompts if moods[p] == "joy" and files[p] == "1.txt"]
    assert order(client, find="joy  1.txt") == both and both
    assert order(client, find="filename") == []  # a column's name is no text of its rows
    assert order(client, find="100%_'\"") == []


@pytest.mark.parametrize("selector", ["last", "mean"])
def test_points_are_those_of_an_svd(client, made, selector):
    values = made[1].matrix("hidden_out", 1, selector)
    named = {"site": "hidden_out", "layer": 1, "selector": selector, "label": "mood"}
    answer = client.get(f"{PAGE}/plane.json", params=named).json()
    assert [row["prompt_id"] for row in answer] == made[1].prompts
    u, sizes, _ = np.linalg.svd(values - values.mean(0, dtype="f8"), full_matrices=False)
    for axis in (0, 1):
        points = np.array([row[f"pc{axis + 1}"] for row in answer])
        own = u[:, axis] * sizes[axis]
        assert min(np.abs(points - own).max(), np.abs(points + own).max()) < 1e-3 * sizes[0]
    moods = made[1].labels["mood"].to_pylist()
    assert [row["label"] for row in answer] == [moods[p] for p in made[1].prompts]
    shares = client.get(f"{PAGE}/plane", params=named).json()["shares"]
    assert shares == pytest.approx((sizes**2 / (sizes**2).sum())[:2], rel=1e-4)


def test_one_row(client, made):
    values = made[1].matrix("hidden_out", 2)
    asked = {"run": "latest", "prompt": 5, "layer": 2, "site": "hidden_out", "selector": "last"}
    own = values[made[1].prompts.index(5)]
    dims = client.get("/data/dataset_row_dims.json", params=asked).json()
    assert [row["dim"] for row in dims] == np.argsort(-np.abs(own), kind="stable")[:20].tolist()
    assert [row["dimension_value"] for row in dims] == own[[row["dim"] for row in dims]].tolist()
    norms = client.get("/data/dataset_row_norms.json", params=asked).json()
    assert norms[2]["row_norm"] == pytest.approx(np.linalg.norm(own.astype("f8")))
    cosines = values @ own / np.linalg.norm(values, axis=1) / np.linalg.norm(own)
    best = [p for _, p in sorted(zip(-cosines, made[1].prompts, strict=True)) if p != 5][:12]
    near = client.get("/data/dataset_nearest.json", params=asked).json()
    assert [row["prompt_id"] for row in near] == best


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("site=hidden_out&layer=1", "needs a selector"),
        ("site=mood&layer=1&selector=last", "no site"),
        ("site=hidden_out&layer=9&selector=last", "layer"),
        ("site=hidden_out&layer=1&selector=none", "no selector"),
        ("site=hidden_out&layer=1&selector=last&label=nothing", "no column"),
    ],
)
def test_what_is_not_there_is_said(client, query, words):
    answer = client.get(f"{PAGE}/plane?{query}")
    assert answer.status_code in (400, 404) and words in answer.json()["error"]


@pytest.mark.browser
@pytest.mark.skipif(executable() is None, reason="no Chromium on the path")
class TestInTheBrowser:
    @LOOKS
    def test_the_page_is_whole(self, browser, service, width, dark):
        visit = Visit(browser, service, width=width, dark=dark).open(f"{PAGE}?prompt=5")
        expect(visit.page.locator("#one-name")).to_have_text("row 5")
        expect(visit.page.locator("#dataset-rows .open")).to_have_count(50)
        visit.draw()  # what is drawn moves what is below it
        states = visit.draw()
        assert states == {"drawn": 4} and visit.problems == []
        assert not visit.overflows()
        assert visit.findings() == []
        visit.page.close()

    def test_the_table_and_the_points_choose_for_each_other(self, browser, service, made):
        visit = Visit(browser, service).open(PAGE)
        visit.draw()
        page, count = visit.page, visit.page.locator("#row-count")
        expect(count).to_have_text(f"{len(made[1].prompts)} rows")
        page.locator("[name=find]").fill("calm")
        calm = [p for p in made[1].prompts if made[1].labels["mood"][p].as_py() == "calm"]
        expect(count).to_have_text(f"{len(calm)} rows with “calm”")
        page.locator("[name=find]").fill("")
        expect(count).to_have_text(f"{len(made[1].prompts)} rows")
        box = page.locator("figure[data-chart=dataset_plane] canvas").bounding_box()
        page.mouse.move(box["x"] + 2, box["y"] + 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=4)
        page.mouse.up()
        expect(count).to_contain_text("in the frame")
        left = int(count.inner_text().split()[0])
        assert 0 < left < len(made[1].prompts) and "frame=" in page.url
        page.reload()
        expect(count).to_have_text(f"{left} row{'s' * (left > 1)} in the frame")
        page.locator("#all-rows").click()
        expect(count).to_have_text(f"{len(made[1].prompts)} rows")
        page.locator("#dataset-rows thead button", has_text="mood").click()
        page.wait_for_url(re.compile("sort=mood"))
        page.locator("#dataset-rows .open").first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("#one-row")).to_be_visible()
        assert visit.problems == []
        page.close()
