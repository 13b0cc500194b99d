"""Tiles, tensors and attention: numbers against `lab.tensor` and SQL, and the pages in a browser."""

import re
import shutil

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import executable
from pages_in_browser import LOOKS, Visit, served
from playwright.sync_api import expect
from synthetic import Shape, make_run
from test_search import HOSTILE, with_words

from warehouse.api.warehouse import Warehouse
from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium on the path"),
]
TENSOR, ATTENTION = "/run/latest:talk/tensor", "/run/latest:talk/attention"


@pytest.fixture(scope="module")
def client(service):
    with httpx.Client(base_url=service.address.partition("/?")[0], follow_redirects=True) as client:
        client.get(service.address)
        yield client


@pytest.fixture(scope="module")
def lab(conversations):
    return Warehouse(conversations.warehouse)


def whole(lab: Warehouse, site: str, step: int) -> np.ndarray:
    """(heads, rows, columns) of layer 1, as the page has it; q, k and v by head."""
    layer = None if site in ("logits", "embeddings") else 1
    values = lab.tensor("latest:talk", site, layer=layer, step=step)
    if site == "attention":
        return values
    heads = 2 if site in "qkv" else 1
    return values.reshape(len(values), heads, -1).swapaxes(0, 1)


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("site", ["hidden_out", "mlp_gate", "q", "attention", "logits"])
def test_a_tile_has_the_tensors_own_values(client, lab, site, step):
    expected = whole(lab, site, step)
    named = {"site": site, "layer": 1, "step": step}
    facts = client.get(f"{TENSOR}/facts", params=named).json()
    assert (facts["heads"], facts["height"], facts["width"]) == expected.shape
    if site != "attention":
        assert facts["ends"]["low"] == expected.min() and facts["ends"]["high"] == expected.max()
    for head, values in enumerate(expected):
        named |= {"head": head, "row": 0, "column": 3, "columns": 5}
        tile = client.get(f"{TENSOR}/tile", params=named).content
        cut = values[:, 3:8]
        assert np.array_equal(np.frombuffer(tile, "<f4").reshape(cut.shape), cut)


def test_a_smaller_tile_and_its_files(client, lab, tmp_path):
    values = whole(lab, "hidden_out", 0)[0]
    named = {"site": "hidden_out", "layer": 1, "down": 4, "across": 8, "statistic": "mean"}
    expected = values.reshape(3, 4, 2, 8).mean(axis=(1, 3))
    tile = np.frombuffer(client.get(f"{TENSOR}/tile", params=named).content, "<f4")
    assert tile.reshape(3, 2) == pytest.approx(expected, abs=1e-6)
    rows = client.get(f"{TENSOR}/tile.json", params=named).json()
    assert [row["position"] for row in rows] == [0, 4, 8]
    assert [row["8-15"] for row in rows] == pytest.approx(expected[:, 1], abs=1e-6)
    assert client.get(f"{TENSOR}/tile.csv", params=named).text.splitlines()[0].count("-") == 2
    path = tmp_path / "tile.parquet"
    path.write_bytes(client.get(f"{TENSOR}/tile.parquet", params=named).content)
    assert pq.read_table(path).column_names == ["position", "0-7", "8-15"]


def test_attended_is_the_weight_times_the_length_of_the_value(client, lab):
    weights, values = whole(lab, "attention", 0), whole(lab, "v", 0)
    expected = weights * np.linalg.norm(values.astype("f8"), axis=2)[:, None, :]
    named = {"site": "attended", "layer": 1}
    facts = client.get(f"{TENSOR}/facts", params=named).json()
    assert facts["ends"]["high"] == pytest.approx(expected.max(), rel=1e-5)
    for head in range(2):
        tile = client.get(f"{TENSOR}/tile", params=named | {"head": head}).content
        assert np.frombuffer(tile, "<f4") == pytest.approx(expected[head].reshape(-1), rel=1e-5)
    rows = client.get("/data/tensor_attended.json", params={"run": "latest:talk", "layer": 1})
    for row in rows.json():
        own = expected[row["head"], row["position"], : row["position"] + 1]
        assert row["attended"] == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("queries", [1, 5, 12])
def test_the_map_of_heads(client, lab, queries):
    named = {"run": "latest:talk", "step": 0, "queries": queries}
    rows = client.get("/data/attention_heads.json", params=named).json()
    assert len(rows) == 3 * 2
    weights = lab.tensor("latest:talk", "attention", layer=[0, 1, 2], step=0).astype("f8")
    own = weights[:, :, -queries:]
    entropy = -np.where(own > 0, own * np.log(np.where(own > 0, own, 1)), 0).sum(-1)
    most = np.log(np.arange(1, 13)[-queries:])
    share = np.nanmean(np.where(most > 0, entropy / np.where(most > 0, most, 1), np.nan), axis=2)
    for row in rows:
        at = row["layer"], row["head"]
        assert row["entropy"] == pytest.approx(entropy[at].mean(), rel=1e-5)
        assert row["share"] == pytest.approx(share[at], rel=1e-5)
        assert row["to_first"] == pytest.approx(own[at][:, 0].mean(), rel=1e-5)
        assert row["largest"] == pytest.approx(own[at].max(1).mean(), rel=1e-5)
        assert (row["queries"], row["from_position"]) == (queries, 12 - queries)


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("facts", 400, "needs a site"),
        ("facts?site=mood&layer=0", 404, "no site 'mood'"),
        ("facts?site=hidden_out", 400, "layer"),
        ("facts?site=hidden_out&layer=9", 404, "no layer 9"),
        ("facts?site=hidden_out&layer=-1", 400, "layer"),
        ("facts?site=hidden_out&layer=x", 400, "whole number"),
        ("facts?site=hidden_out&layer=0&step=99", 404, "step 99"),
        ("facts?site=hidden_out&layer=0&prompt=7", 404, "prompt 7"),
        ("facts?site=q,k&layer=0", 400, "more than one"),
        ("tile?site=q&layer=0&head=2", 400, "head is 2"),
        ("tile?site=q&layer=0&row=-1", 400, "row is -1"),
        ("tile?site=q&layer=0&column=400", 400, "column is 400"),
        ("tile?site=q&layer=0&down=0", 400, "down is 0"),
        ("tile?site=q&layer=0&rows=513", 400, "rows is 513"),
        ("tile?site=q&layer=0&statistic=median", 400, "median"),
        ("tile.xml?site=q&layer=0", 404, "xml"),
    ],
)
def test_what_is_not_there_is_said(client, address, status, words):
    answer = client.get(f"{TENSOR}/{address}")
    assert answer.status_code == status and words in answer.json()["error"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_named_and_the_rest_works(conversations, tmp_path, damage):
    shutil.copytree(conversations.warehouse, tmp_path / "lab")
    lake = Lake(tmp_path / "lab")
    (path,) = lake.root.glob("activations/run=talk*/*/layer=01/*.parquet")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        path.unlink()
    with served(lake) as service, httpx.Client(follow_redirects=True) as client:
        client.get(service.address)
        here = service.address.partition("/?")[0] + TENSOR
        bad = client.get(f"{here}/facts?site=hidden_out&layer=1")
        assert bad.status_code in (400, 404) and bad.json()["error"]
        assert client.get(f"{here}/facts?site=hidden_out&layer=0").status_code == 200


class TestInTheBrowser:
    pytestmark = needs_browser

    @LOOKS
    @pytest.mark.parametrize("path", [TENSOR, f"{ATTENTION}?maps=0-0,2-1"])
    def test_a_page_is_whole(self, browser, service, path, width, dark):
        visit = Visit(browser, service, width=width, dark=dark).open(path)
        states = visit.draw()
        assert states and not states.get("failed") and not states.get("") and visit.problems == []
        assert not visit.overflows()
        assert visit.findings() == []
        visit.page.close()

    def test_keys_and_the_pointer_read_exact_values(self, browser, service, lab):
        visit = Visit(browser, service).open(f"{TENSOR}?site=hidden_out&layer=1")
        visit.draw()
        frame = visit.page.locator(".matrix[data-state=drawn]")
        frame.focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"):
            frame.press(key)
        values = lab.tensor("latest:talk", "hidden_out", layer=1)
        said = visit.page.locator(".reading")
        expect(said).to_contain_text("dimension 2 ")
        token, _, number = said.inner_text().split(" · ")
        assert "position 2" in token
        assert np.float32(number.replace("−", "-")) == values[2, 2]
        visit.page.locator("[data-set=layer]").fill("2")
        visit.page.wait_for_url(re.compile("layer=2"))
        frame = visit.page.locator(".matrix[data-state=drawn]")
        frame.focus()
        frame.press("+")
        visit.page.wait_for_url(re.compile("view="))
        assert visit.problems == []
        visit.page.close()

    def test_pixels_have_the_colours_of_their_values(self, browser, service, lab):
        visit = Visit(browser, service).open(f"{TENSOR}?site=hidden_out&layer=1&ends=whole")
        visit.draw()
        visit.page.wait_for_selector(".matrix[data-state=drawn]")
        values = lab.tensor("latest:talk", "hidden_out", layer=1)
        row, column = np.unravel_index(np.argmax(values), values.shape)
        low_row, low_column = np.unravel_index(np.argmin(values), values.shape)
        red, blue = visit.page.evaluate(
            """(cells) => {
              const canvas = document.querySelector('.matrix canvas');
              const [rows, columns] = [12, 16];
              const [left, top] = [76, 20];
              const wide = Math.min(44, (canvas.width - left - 2) / columns), high = Math.min(22, (canvas.height - top) / rows);
              return cells.map(([row, column]) => [...canvas.getContext('2d').getImageData(
                left + (column + .5) * wide, top + (row + .5) * high, 1, 1).data]);
            }""",
            [[int(row), int(column)], [int(low_row), int(low_column)]],
        )
        assert red[0] > red[2] + 40 and blue[2] > blue[0] + 40
        visit.page.close()

    def test_heads_are_chosen_and_have_one_scale(self, browser, service):
        visit = Visit(browser, service).open(f"{ATTENTION}?layer=1")
        visit.draw()
        visit.page.locator("#whole-layer").click()
        visit.page.wait_for_selector(".maps section:nth-child(2) .matrix[data-state=drawn]")
        assert "maps=1-0%2C1-1" in visit.page.url
        assert visit.page.locator("figure[data-chart=attention_maps] .legend").count() == 1
        heads = visit.page.locator("figure[data-chart=attention_heads] .matrix")
        heads.focus()
        heads.press("ArrowDown")
        heads.press("Enter")
        visit.page.wait_for_selector(".maps section:nth-child(3)")
        visit.page.locator("[aria-label='Take away layer 1, head 0']").click()
        visit.page.wait_for_url(re.compile("maps=1-1%2C0-0"))
        visit.page.locator("input[value=attended]").check(force=True)
        maps = visit.page.locator("figure[data-chart=attention_maps]")
        expect(maps.locator(".plot")).to_contain_text("length of the value")
        maps.locator("button", has_text="SQL").click()
        text = maps.locator("pre").inner_text()
        assert text.count("attention_of(") == 2 and "UNION ALL" in text  # layers 0 and 1
        assert visit.problems == []
        visit.page.close()

    @pytest.mark.parametrize("path", [f"{TENSOR}?site=hidden_out&layer=1", f"{ATTENTION}?maps=1-0"])
    def test_words_of_the_enemy_are_words(self, browser, tmp_path, monkeypatch, path):
        lake = Lake(tmp_path / "lab")
        with_words(monkeypatch)
        make_run(lake, "talk", Shape(), model_id=HOSTILE)
        catalog.sync(lake)
        with served(lake) as service:
            visit = Visit(browser, service).open(path)
            states = visit.draw()
            assert states and not states.get("failed")
            frame = visit.page.locator(".matrix[data-state=drawn]").last
            frame.focus()
            for _ in range(4):
                frame.press("ArrowDown")
            told = visit.page.locator(".reading").last
            expect(told).to_contain_text("</script><script>alert(1)")
            assert "\u202e" not in told.inner_text()
            assert visit.problems == []
            visit.page.close()
