"""The comparison of states: its numbers against numpy, its words, and the page in a browser."""

import json
import re
from itertools import combinations
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pyarrow as pa
import pytest
from browser import executable
from pages_in_browser import WIDTHS, Visit, served
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset

from warehouse.assets import asset_dir
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.report.page import measures as page_measures
from warehouse.serve import tasks
from warehouse.serve.computed import average_linkage, dendrogram, pca, spectra
from warehouse.serve.pages import address

HOSTILE = "$site </script><b>\u202e'\""
in_browser = pytest.mark.skipif(executable() is None, reason="no Chromium on the path")


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    """Two runs that compare, one of another width, one with a hostile label, and a dataset."""
    lake = Lake(tmp_path_factory.mktemp("compare") / "lab")
    make_run(lake, "talk", Shape(width=640), seed=1)
    make_run(lake, "other", Shape(width=640, labels=("joy", HOSTILE)), seed=2)
    make_run(lake, "narrow", Shape(width=12), seed=3)
    make_dataset(lake, "set")
    catalog.sync(lake)
    return lake


@pytest.fixture(scope="module")
def desk(lake):
    with catalog.connect(lake) as db:
        yield tasks.Desk(lake, db)


def rows(desk, name: str, refs: list[str], **values) -> list[dict]:
    return json.loads(tasks.data(desk, name, {"refs": refs, **values}, "json"))


def vectors(desk, run: str, state: str, site: str = "hidden_out") -> np.ndarray:
    """(layers, width) of a run's only initial or final state."""
    found = desk.db.execute(
        "SELECT vector FROM states_of(?) WHERE state = ? AND site = ? ORDER BY layer",
        [run, state, site],
    ).fetchall()
    return np.array([one for (one,) in found], float)


def linked(distance: np.ndarray) -> list[tuple[frozenset, float]]:
    """Average linkage as it is defined: the mean over all pairs, computed anew each time."""
    groups, steps = [frozenset([n]) for n in range(len(distance))], []
    while len(groups) > 1:
        far, a, b = min(
            (
                (np.mean([distance[i, j] for i in a for j in b]), a, b)
                for a, b in combinations(groups, 2)
            ),
            key=lambda one: one[0],
        )
        groups = [one for one in groups if one not in (a, b)] + [a | b]
        steps.append((a | b, far))
    return steps


@pytest.mark.parametrize("n", [2, 3, 12])
def test_average_linkage_is_as_it_is_defined(n):
    points = np.random.default_rng(n).standard_normal((n, 5))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    members = {k: frozenset([k]) for k in range(n)}
    for step, ((a, b, far, size), (group, wanted)) in enumerate(
        zip(average_linkage(distance), linked(distance), strict=True)
    ):
        members[n + step] = members[a] | members[b]
        assert members[n + step] == group and size == len(group)
        assert far == pytest.approx(wanted)


def test_branches_of_a_dendrogram_do_not_cross():
    cosines = {
        (0, 1): 0.1,
        (0, 2): 0.9,
        (0, 3): 0.2,
        (1, 2): 0.15,
        (1, 3): 0.8,
        (2, 3): 0.25,
        (0, 4): None,
    }
    columns = [list(one) for one in zip(*((a, b, c) for (a, b), c in cosines.items()), strict=True)]
    lines = dendrogram(
        pa.table(dict(zip(("place_a", "place_b", "cosine"), columns, strict=True)))
    ).to_pylist()
    order = [one["place"] for one in lines if one["part"] == "leaf"]
    assert sorted(order) == [0, 1, 2, 3]  # the fifth has no cosine
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset((0, 2)), frozenset((1, 3))}
    heights = [one["distance_2"] for one in lines if one["part"] == "branch"]
    assert sorted(set(np.round(heights, 9))) == [0.1, 0.2, 0.825]


def lists(x: np.ndarray) -> pa.Array:
    return pa.array(x.astype("f4").tolist(), pa.list_(pa.float32()))


@pytest.mark.parametrize("shape", [(12, 5), (6, 40)])
def test_pca_is_that_of_a_singular_value_decomposition(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype("f4")
    at = {"place": list(range(shape[0])), "layer": [0] * shape[0]}
    table = pca(pa.table(at | {"vector": lists(x)}))
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    for n in range(2):
        found, wanted = table[f"pc{n + 1}"].to_numpy(), u[:, n] * s[n]
        assert np.allclose(found, wanted, atol=1e-4) or np.allclose(found, -wanted, atol=1e-4)
        assert table[f"share{n + 1}"][0].as_py() == pytest.approx(
            s[n] ** 2 / (s**2).sum(), rel=1e-4
        )
    assert pca(pa.table({"place": [0], "layer": [0], "vector": lists(x[:1])})).num_rows == 0


def test_spectra_are_those_of_a_singular_value_decomposition():
    x = np.random.default_rng(1).standard_normal((7, 30)).astype("f4")
    table = pa.table({"place": [0] * 6 + [1], "layer": [3] * 7, "vector": lists(x)})
    found = spectra(table).to_pylist()
    s = np.linalg.svd(x[:6] - x[:6].mean(0), compute_uv=False)[:5]
    assert {one["place"] for one in found} == {0}  # one token has no spectrum
    assert [one["singular"] for one in found] == pytest.approx(s.tolist(), rel=1e-4)
    p = s / s.sum()
    assert found[0]["token_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert (found[0]["largest"], found[0]["nuclear"]) == pytest.approx((s[0], s.sum()), rel=1e-4)


def test_pictures_have_the_largest_of_each_column_and_one_scale(desk):
    a, b = vectors(desk, "latest:talk", "initial"), vectors(desk, "latest:other", "initial")
    found = rows(desk, "compare_vectors", ["latest:talk", "latest:other"], site="hidden_out")
    scale = np.quantile(np.abs(np.concatenate([a, b])), 0.99)
    assert len(found) == 3 * 214  # 640 dimensions, three to a column
    for one in found:
        span = slice(one["dim"], one["dim"] + one["dims"])
        for side, whole in (("a", a), ("b", b), ("difference", a - b)):
            part = whole[one["row"], span]
            assert one[side] == pytest.approx(part[np.argmax(np.abs(part))], rel=1e-6)
        sizes = np.abs(np.stack([a[one["row"]], b[one["row"]]]))
        assert one["scale_row"] == pytest.approx(np.quantile(sizes, 0.99), rel=1e-6)
        assert one["scale_all"] == pytest.approx(scale, rel=1e-6)


def test_a_table_says_where_the_extreme_is(desk):
    a, b = vectors(desk, "latest:talk", "initial"), vectors(desk, "latest:talk", "final")
    found = rows(desk, "compare_pair_summary", ["latest:talk", "latest:talk:0:final"])
    (one,) = [one for one in found if one["site"] == "hidden_out"]
    std, mae = (a - b).std(1), np.abs(a - b).mean(1)
    assert (one["std_mean"], one["std_max"]) == pytest.approx((std.mean(), std.max()), rel=1e-6)
    assert (one["std_max_layer"], one["mae_max_layer"]) == (std.argmax(), mae.argmax())


def test_attention_is_compared_over_aligned_tokens_and_the_rest(desk):
    both = ["latest:talk:0:final", "latest:other:0:final"]
    found = rows(desk, "compare_heads", both, alignment="message", layer=1)
    maps = []
    for run in ("latest:talk", "latest:other"):
        got = desk.db.execute(
            "SELECT head, position, weights FROM attention_of(?) WHERE layer = 1", [run]
        )
        maps.append({(head, position): np.array(w, float) for head, position, w in got.fetchall()})
    aligned = [(r["position_a"], r["position_b"]) for r in json.loads(tasks.data(
        desk, "compare_tokens", {"refs": both, "alignment": "message", "site": "hidden_out"}, "json")) if r["layer"] == 0]  # fmt: skip
    assert len(found) == 2 * len(aligned) > 20
    for one in found:
        p, q = (
            side[one["head"], one[f"position_{name}"]]
            for side, name in zip(maps, "ab", strict=True)
        )
        keys = [(i, j) for i, j in aligned if i < len(p) and j < len(q)]
        x, y = np.array([p[i] for i, _ in keys]), np.array([q[j] for _, j in keys])
        wanted = 0.5 * (np.abs(x - y).sum() + abs((p.sum() - x.sum()) - (q.sum() - y.sum())))
        assert one["variation"] == pytest.approx(wanted, abs=1e-6)


def test_entropy_is_the_mean_over_heads_of_each_heads_own(desk):
    found = rows(desk, "compare_entropy", ["latest:talk"])
    got = desk.db.execute(
        "SELECT layer, weights FROM attention_of('latest:talk') WHERE position = 11"
    ).fetchall()
    for one in found:
        each = [
            -sum(w * np.log(w) for w in weights if w > 0)
            for layer, weights in got
            if layer == one["layer"]
        ]
        assert one["attention_entropy"] == pytest.approx(np.mean(each), rel=1e-5)
        assert one["heads"] == len(each) == 2


def test_where_streams_settle_and_arrive(desk):
    (one,) = rows(desk, "compare_depth", ["latest:talk"])
    there = rows(desk, "compare_convergence", ["latest:talk"])
    for name, column, threshold in (
        ("settles", "cosine_layer", 0.99),
        ("arrives", "cosine_arrival", 0.9),
    ):
        good = [n for n in range(3) if all(row[column] >= threshold for row in there[n:])]
        assert one[name] == (min(good) if good else None)


CHARTS = sorted((asset_dir("reports") / "serve" / "charts").glob("compare_*.vl.json"))


@pytest.mark.parametrize("path", CHARTS, ids=lambda path: path.name)
def test_a_chart_draws_what_its_words_say(path):
    """A figure's title and reading are those of the measured column, which is the only one drawn."""
    chart = json.loads(path.read_bytes())
    words = json.loads((asset_dir("reports") / "serve" / "measures.json").read_bytes())
    words |= page_measures(with_datasets=True)
    assert chart["title"]["text"]["expr"].startswith("title")
    assert chart["title"]["subtitle"]["expr"] == "reading"
    assert {"calculate": "datum[field]", "as": "value"} in chart["transform"]
    template = (asset_dir("reports") / "serve" / "compare.html.j2").read_text()
    measure = chart["usermeta"]["measure"]
    fixed = set(re.findall(r'"measure": "(\w+)"|lines\("(\w+)"', template))
    names = {one for pair in fixed for one in pair if one} if measure == "$measure" else {measure}
    assert names and names <= set(words)
    if chart["usermeta"]["channel"] == "color":
        assert measure == "$measure" or words[measure]["colour"]


def test_choices_are_refs_that_are_there(desk):
    for run in ("latest:talk", "latest:other", "latest:set"):
        choices = json.loads(tasks.data(desk, "compare_choices", {"run": run, "find": ""}, "json"))
        found = rows(desk, "compare_refs", [one["ref"] for one in choices])
        assert len(found) == len(choices) > 5
        assert all(one["sites"] for one in found)
    (one,) = json.loads(
        tasks.data(desk, "compare_choices", {"run": "latest:other", "find": "</SCRIPT>"}, "json")
    )
    assert one["ref"].endswith(f":reference:{HOSTILE}")


def test_a_dollar_of_a_text_is_no_choice():
    assert (
        address("/x", refs=["a:reference:$site"], site="$site")
        == "/x?refs=a%3Areference%3A%24site&site=$site"
    )


@pytest.mark.parametrize(
    "ref",
    [
        "nobody",
        "latest:talk:0:before",
        "latest:talk:0:snapshot:99",
        "",
        "::",
        "latest:set:row:zz",
        f"latest:talk:0:token:{10**20}",
        f"latest:talk:{10**20}:final",
    ],
)
def test_what_is_not_there_is_told(service, ref):
    import httpx

    with httpx.Client(follow_redirects=True) as client:
        client.get(service.address)
        answer = client.get(
            f"{service.address.partition('/?')[0]}/compare",
            params={"ref": ref},
            headers={"accept": "application/json"},
        )
    assert answer.status_code in (400, 404) and answer.json()["error"]
    assert "-1" not in answer.json()["error"]


def test_unknown_runs_are_an_error_of_data(desk):
    with pytest.raises(AlabError, match="there is no run 'nobody'"):
        rows(desk, "compare_pair", ["nobody", "latest"])


@pytest.fixture(scope="module")
def service(lake):
    with served(lake) as service:
        yield service


def page(*refs: str, **values: str) -> str:
    return f"/compare?{urlencode([('ref', ref) for ref in refs] + list(values.items()))}"


PAIR = page("latest:talk", "latest:other")
MANY = page(
    "latest:talk",
    "latest:talk:0:final",
    "latest:other",
    "latest:talk:0:token:4",
    f"latest:other:reference:{HOSTILE}",
)
OTHERS = page("latest:talk", "latest:narrow")
STRANGERS = page("latest:set:row:row 4", "latest:narrow:0:final", alignment="message")
ROWS = page(*(f"latest:set:row:row {n}" for n in range(4, 54)))


def drawn(visit: Visit) -> dict[str, int]:
    """What states figures end in; they come into view as those above them get their height."""
    for _ in range(20):
        states = visit.draw()
        if not states.get(""):
            break
    return states


@pytest.mark.browser
@in_browser
@pytest.mark.parametrize(("path", "width", "dark"), [
    ("/compare", WIDTHS[0], False), (PAIR, WIDTHS[0], True), (PAIR, WIDTHS[1], False), (MANY, WIDTHS[0], False),
    (MANY, WIDTHS[1], True), (OTHERS, WIDTHS[1], False), (STRANGERS, WIDTHS[1], False), (ROWS, WIDTHS[1], False),
])  # fmt: skip
def test_the_page_is_whole(browser, service, path, width, dark):
    visit = Visit(browser, service, width=width, dark=dark).open(path)
    states = drawn(visit)
    assert not states.get("failed") and not states.get("") and visit.problems == []
    assert states.get("drawn", 0) >= (8 if path in (PAIR, MANY) else 0)
    assert not visit.overflows()
    assert visit.findings() == []
    visit.page.close()


@pytest.mark.browser
@in_browser
def test_a_run_without_a_reply_is_asked_which_of_its_states(browser, service):
    visit = Visit(browser, service).open(page("latest:talk", "latest:set"))
    assert "no reply" in visit.page.inner_text("p.note") and visit.problems == []
    assert visit.page.locator("#compared li").count() == 1
    assert visit.page.input_value("#chooser [name=run]").startswith("set_")
    visit.page.wait_for_selector("#chooser [name=ref] option")
    assert visit.findings() == []
    visit.page.close()


@pytest.mark.browser
@in_browser
def test_states_are_chosen_moved_and_taken_out(browser, service):
    visit = Visit(browser, service).open("/compare")
    one = visit.page
    one.select_option(
        "#chooser [name=run]",
        label=one.locator("#chooser option").filter(has_text="other_").first.text_content(),
    )
    one.wait_for_selector("#chooser [name=ref] option[value^='other_']", state="attached")
    values = one.eval_on_selector_all(
        "#chooser [name=ref] option", "all => all.map((o) => o.value)"
    )
    hostile = next(value for value in values if value.endswith(HOSTILE))
    one.select_option("#chooser [name=ref]", [values[0], hostile])
    one.click("#chooser button")
    one.wait_for_selector("#compared li:nth-child(2)")
    refs = lambda: parse_qs(urlsplit(one.url).query)["ref"]  # noqa: E731
    assert refs() == [values[0], hostile]
    one.click("#compared li:nth-child(2) [data-move='-1']")
    one.wait_for_selector("#compared li:first-child bdi:text('reference')")
    assert refs() == [hostile, values[0]]
    one.click("#compared li:first-child [data-remove]")
    one.wait_for_selector("#compared li:only-child")
    assert refs() == [values[0]] and visit.problems == []
    one.close()


@pytest.mark.browser
@in_browser
def test_keys_move_the_layer_and_read_pictures(browser, service):
    visit = Visit(browser, service).open(PAIR)
    visit.draw()
    one = visit.page
    layer = one.locator("output[data-of=layer]")
    before = int(layer.text_content())
    one.locator("body").press("ArrowRight")
    assert int(layer.text_content()) == before + 1 and f"layer={before + 1}" in one.url
    canvas = one.locator("figure[data-chart=compare_heat] canvas").first
    canvas.focus()
    canvas.press("ArrowRight")
    said = one.locator("figure[data-chart=compare_heat] output").first.text_content()
    assert said.startswith("layer␣0") and "dimensions 3 to 5" in said and "A − B" in said
    assert int(layer.text_content()) == before + 1  # the picture's own arrows
    assert visit.problems == []
    one.close()
