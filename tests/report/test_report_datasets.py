"""Reports of dataset runs: numbers against numpy, labels of every kind, and pages that stay small."""

import json
import re
from html import unescape

import browser
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_pages import edit, unpack, written
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.report import datasets, projection
from warehouse.report.write import write_report

HOSTILE = "</script><script>window.hacked = 1</script>{{ 7 * 7 }} \" ' & <b>\u202e\n\x07"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of 60 rows, with its page."""
    lake = Lake(tmp_path_factory.mktemp("dataset") / "lab")
    made = make_dataset(lake, seed=1)
    return made, written(lake), lake


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lab")


def relabel(lake: Lake, run_id: str, **columns) -> None:
    """Give a dataset other columns; each takes the prompt's number."""
    path = lake.dataset("labels", run_id) / "part-0.parquet"
    rows = pq.read_table(path, partitioning=None).select(["run_id", "prompt_id"])
    for name, value in columns.items():
        rows = rows.append_column(name, pa.array([value(n) for n in range(len(rows))]))
    pq.write_table(rows, path)


def rows_of(table: dict, **where) -> list[dict]:
    """Rows of a packed table."""
    columns = {}
    for name, values in table["columns"].items():
        if isinstance(values, dict):
            texts = [*values["values"], None]
            values = [texts[code] for code in values["codes"]]
        columns[name] = values
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def choices_of(html: str) -> dict:
    return json.loads(unescape(re.search(r'class="dataset[^>]*data-choices="([^"]*)"', html)[1]))


def plain(html: str) -> str:
    """What a reader reads, in one line."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
    apart = re.sub(r"</?(?:[dou]l|li|p|d[dt]|div|h\d|t[dhr])\b[^>]*>", " ", body)
    return " ".join(unescape(re.sub(r"<[^>]+>", "", apart)).split())


def test_what_the_dataset_is(made):
    text = plain(made[1])
    tokens = sum(made[0].lengths.values())
    assert (
        "59 prompts, each made of a row of the dataset; the rows are in 5 groups by filename"
        in text
    )
    assert f"Tokens read {tokens:,}" in text
    assert "56 in 8 batches of prompts padded to one length; 3 one by one" in text
    assert "differ by 2.0e-07 of their length at most, in layer 1" in text
    assert "1 row was not read: row 3 is too long" in text
    assert "capture.sites leaves it out" in text
    assert "last, message_ends, name, mean" in text
    assert text.count("row 3 is too long") == 1
    assert 'class="run"' not in made[1]  # no cards


def test_lengths_are_counted_once_each(made):
    rows = rows_of(unpack(made[1])["dataset_lengths-0"])
    assert all(row["low"] == row["high"] for row in rows)
    counts = {row["low"]: row["prompts"] for row in rows}
    lengths = list(made[0].lengths.values())
    assert counts == {length: lengths.count(length) for length in set(lengths)}


def test_norms_are_those_of_numpy(made):
    made, html, _ = made
    rows = rows_of(unpack(html)["dataset_norms-0"], label_column="mood")
    assert {row["layer"] for row in rows} == {0, 1, 2}
    for row in rows:
        moods = np.array(made.label("mood"), object)
        norms = np.linalg.norm(
            made.matrix("hidden_out", row["layer"])[moods == row["label"]], axis=1
        )
        assert (row["n"], row["label_norm"]) == (len(norms), pytest.approx(norms.mean(), rel=1e-4))
        assert row["norm_std"] == pytest.approx(norms.std(), rel=1e-3)


def test_similarities_are_those_of_numpy(made):
    made, html, _ = made
    rows = rows_of(unpack(html)["dataset_similarity-0"], label_column="mood")
    moods = np.array(made.label("mood"), object)
    there = np.array([mood is not None for mood in moods])
    for row in rows:
        vectors = made.matrix("hidden_out", row["layer"])[there].astype("f8")
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        centred = vectors - vectors.mean(axis=0)
        same = moods[there][:, None] == moods[there][None]
        pairs = same & ~np.eye(len(same), dtype=bool) if row["pairs"] == "same label" else ~same
        whole = np.square(centred).sum(axis=1).mean()
        assert row["pair_cosine"] == pytest.approx((unit @ unit.T)[pairs].mean(), rel=1e-3)
        found = (centred @ centred.T)[pairs].mean() / whole
        assert row["pair_centred"] == pytest.approx(found, rel=1e-3, abs=1e-5)


def test_the_plane_is_that_of_the_singular_vectors(made):
    made, html, _ = made
    table = unpack(html)["dataset_points-0"]
    explained = choices_of(html)["explained"]
    for layer in range(3):
        rows = rows_of(table, layer=layer)
        assert [row["prompt_id"] for row in rows] == made.prompts
        assert [row["label mood"] for row in rows] == made.label("mood")
        vectors = made.matrix("hidden_out", layer).astype("f8")
        u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
        for axis, name in enumerate(("pc1", "pc2")):
            found, expected = np.array([row[name] for row in rows]), u[:, axis] * s[axis]
            expected *= np.sign(found @ expected)
            assert found == pytest.approx(expected, abs=2e-3 * np.abs(expected).max())
        shares = 100 * s**2 / (s**2).sum()
        assert explained[str(layer)] == (
            f"{shares[0]:.0f}% of the variance runs across, {shares[1]:.0f}% up"
        )
    share = {row["layer"]: row["share"] for row in rows_of(unpack(html)["dataset_share-0"])}
    assert share[2] == pytest.approx(shares[:2].sum() / 100, rel=1e-4)


def test_points_do_not_jump_from_layer_to_layer():
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((40, 6)) * [9, 5, 1, 1, 1, 1]
    prompts = np.arange(40)
    first, second = projection.planes([(0, prompts, vectors), (1, prompts, -vectors)])
    # A mirrored layer has the same plane; what is the same in both keeps its side.
    assert (first.points * second.points).sum(axis=0).min() > 0


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (2, 3), (1, 4), (5, 1), (0, 4)])
def test_a_plane_of_any_shape(shape):
    vectors = np.random.default_rng(1).standard_normal(shape).astype("f4")
    points, shares = projection.principal(vectors)
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()
    assert 0 <= sum(shares) <= 1 + 1e-9
    if min(shape) > 2:
        spread = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)[:2]
        assert np.linalg.norm(points, axis=0) == pytest.approx(spread, rel=1e-5)


def test_a_plane_leaves_out_what_is_no_number():
    vectors = np.random.default_rng(1).standard_normal((20, 5))
    vectors[3, 2], vectors[7, 0] = np.nan, np.inf
    points, _ = projection.principal(vectors)
    assert np.flatnonzero(np.isnan(points[:, 0])).tolist() == [3, 7]
    whole, _ = projection.principal(np.delete(vectors, [3, 7], axis=0))
    assert np.delete(points, [3, 7], axis=0) == pytest.approx(whole)


def test_a_sample_is_the_same_each_time():
    assert projection.sample(5, 10).tolist() == [0, 1, 2, 3, 4]
    many = projection.sample(20_000, 2_000)
    assert len(set(many.tolist())) == 2_000
    assert (np.diff(many) > 0).all()
    assert many.tolist() == projection.sample(20_000, 2_000).tolist()


def test_which_columns_are_offered(made):
    offered = re.findall(r'<option value="([^"]*)" data-kind="(\w+)"', made[1])
    assert [(unescape(name), kind) for name, kind in offered] == [
        ("mood", "text"), ("run", "text"), ("layer", "text"), ("order", "text"),
        ('a "quoted" name', "text"), ("filename", "text"),  # the group comes after them
        ("with space/slash~tilde", "number"), ("position", "number"),
    ]  # fmt: skip
    points = rows_of(unpack(made[1])["dataset_points-0"], layer=0)
    labels = made[0].label("with space/slash~tilde")
    assert [row["label with space/slash~tilde"] for row in points] == pytest.approx(
        labels, rel=1e-4
    )


def test_hostile_labels_and_names_stay_text(lake):
    made = make_dataset(lake, rows=20)
    names = {HOSTILE: lambda n: HOSTILE * (n % 2) or None, "mood": lambda n: f"{HOSTILE}{n % 3}"}
    relabel(lake, made.run_id, **names)
    html = written(lake)
    assert "<script>window.hacked" not in html
    assert "\u202e" not in html
    key = choices_of(html)["label"]
    assert f'<option value="{key}"' in html or key in unescape(html)
    assert f"label {key}" in unpack(html)["dataset_points-0"]["columns"]


def test_no_labels_at_all(lake):
    made = make_dataset(lake, rows=12, skipped=())
    relabel(lake, made.run_id)
    html = written(lake)
    assert "Nothing is coloured or compared by label" in plain(html)
    assert 'data-chart="projection_plain"' in html
    assert 'data-set="label"' not in html
    assert "Every row of the dataset was read." in plain(html)


def test_one_row(lake):
    make_dataset(lake, rows=1, skipped=())
    html = written(lake)
    assert "1 prompt, each" in plain(html)
    assert "There is one row" in plain(html)
    (row,) = rows_of(unpack(html)["dataset_points-0"], layer=0)
    assert (row["pc1"], row["pc2"]) == (0, 0)


def test_nan_labels_are_none(lake):
    made = make_dataset(lake, rows=60, skipped=())
    numbers = {
        "few": lambda n: float("nan") if n % 3 == 0 else float(n % 3),
        "many": lambda n: float("nan") if n % 3 == 0 else n / 7,
        "none": lambda n: float("nan"),
    }
    relabel(lake, made.run_id, **numbers)
    html = written(lake)
    offered = re.findall(r'<option value="([^"]*)" data-kind="(\w+)"', html)
    assert offered == [("few", "text"), ("many", "number")]
    points = rows_of(unpack(html)["dataset_points-0"], layer=1)
    assert [row["label few"] for row in points[:3]] == [None, "1", "2"]
    assert [row["label many"] for row in points[:2]] == [None, pytest.approx(1 / 7, rel=1e-4)]
    assert {row["label"] for row in rows_of(unpack(html)["dataset_norms-0"])} == {"1", "2"}


def test_a_large_dataset_has_a_small_page(lake, monkeypatch):
    monkeypatch.setattr(datasets, "POINTS", 20)
    monkeypatch.setattr(datasets, "NUMBERS", 60 * 12 * 2 * datasets.LEAST_LAYERS)
    monkeypatch.setattr(datasets, "MAX_LAYERS", 6)
    monkeypatch.setattr(datasets, "MESSAGES", 2)
    made = make_dataset(lake, shape=Shape(layers=9, width=12, mlp=20), skipped=(3, 5, 8, 13))
    html = written(lake)
    text = plain(html)
    points = rows_of(unpack(html)["dataset_points-0"], layer=0)
    assert {row["prompt_id"] for row in points} < set(made.prompts)
    assert len(points) == 20
    assert "Drawn are 20 of 56 rows, chosen at random (seed 0)" in text
    assert "6 of 9 layers can be chosen" in text
    assert "5 of 9 layers are shown, evenly spread" in text
    norms = unpack(html)["dataset_norms-0"]["columns"]
    assert set(norms["label_column"]["values"]) == {"mood", "run"}
    assert {0, 8} <= set(norms["layer"])
    assert "Not compared, because the dataset is large: layer, order" in text
    assert "4 rows were not read" in text
    assert "and 2 more: from warnings" in text


def test_means_alone_are_shown_where_nothing_else_is(lake):
    made = make_dataset(lake, rows=30)
    for path in lake.dataset("metadata", made.run_id).glob("positions.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).slice(0, 0), path)
    edit(lake, made.run_id, "positions")
    html = written(lake)
    rows = rows_of(unpack(html)["dataset_points-0"], layer=2)
    vectors = made.means["hidden_out", 2].astype("f8")
    expected = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)[0]
    assert np.linalg.norm([row["pc1"] for row in rows]) == pytest.approx(expected, rel=1e-3)
    assert "the mean over each prompt's tokens" in plain(html)


def test_datasets_and_conversations_share_a_page(lake):
    make_dataset(lake, "set")
    make_dataset(lake, "other", Shape(layers=2, width=8, mlp=20), rows=25, seed=5)
    for seed in range(2):
        make_run(lake, "talk", Shape(layers=2, labels=("joy", "fear")), seed=seed)
    html = written(lake)
    text = plain(html)
    assert len(re.findall(r'<details class="run" id="card-', html)) == 2
    assert re.findall(r'<section id="(dataset-\d)"', html) == ["dataset-0", "dataset-1"]
    assert "All 2 runs were asked the same" in text or "The prompts of the 2 runs differ" in text
    assert "<h1><bdi>4 runs</bdi></h1>" in html
    assert {"dataset_points-0", "dataset_points-1", "intra"} <= set(unpack(html))
    anchors = re.findall(r'<li><a href="#([\w-]+)">', html)
    assert all(f'id="{anchor}"' in html for anchor in anchors)


def test_a_page_of_conversations_has_nothing_of_datasets(lake):
    make_run(lake, "talk", Shape(layers=2))
    html = written(lake)
    assert "dataset" not in html.split("<script")[0]
    assert "projection_labels" not in html


@pytest.fixture(scope="module")
def tab_of(tmp_path_factory):
    if browser.executable() is None:
        pytest.skip("no Chromium on this machine: install it, or name one in $CHROMIUM")
    with browser.chromium() as running:
        yield lambda path, width: browser.Tab(
            running.new_page(viewport={"width": width, "height": 900}), path
        )


@pytest.mark.browser
def test_every_chart_is_drawn_and_labels_change_it(made, tab_of, tmp_path):
    path = write_report(made[2], out=tmp_path / "r.html")[0]
    tab = tab_of(path, 400)
    labels = tab.page.query_selector('select[data-set="label"]')
    for label, there in (("mood", "labels"), ("position", "numbers"), ("order", "labels")):
        labels.select_option(label=label)
        tab.draw_all()
        shown = tab.page.evaluate(
            "[...document.querySelectorAll('figure')].filter((f) => f.checkVisibility())"
            ".map((f) => [f.dataset.chart, f.dataset.state])"
        )
        charts = {chart for chart, _ in shown}
        assert {state for _, state in shown} == {"drawn"}
        assert charts & {"projection_labels", "projection_numbers"} == {f"projection_{there}"}
        assert ("dataset_norms" in charts) == (there == "labels")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not tab.problems
    tab.page.close()


@pytest.mark.browser
def test_hostile_labels_draw(lake, tab_of, tmp_path):
    made = make_dataset(lake, rows=20)
    relabel(lake, made.run_id, **{HOSTILE: lambda n: f"{HOSTILE}{n % 2}"})
    tab = tab_of(write_report(lake, out=tmp_path / "r.html")[0], 1280)
    assert set(tab.draw_all()) == {"drawn"}
    assert tab.page.evaluate("window.hacked") is None
    legend = tab.page.evaluate(
        "document.querySelector('[data-chart=projection_labels] svg').textContent"
    )
    assert "</script>" in legend
    assert not tab.problems
    tab.page.close()


@pytest.mark.browser
def test_the_sql_behind_a_figure_runs(made, tab_of, tmp_path):
    tab = tab_of(write_report(made[2], out=tmp_path / "r.html")[0], 1280)
    tab.draw_all()
    texts = tab.page.evaluate(
        "[...document.querySelectorAll('figure')].filter((f) => f.checkVisibility()).map((f) => {"
        "f.querySelector('.tools button').click(); return [f.dataset.chart, f.querySelector('pre').textContent]})"
    )
    with catalog.connect(made[2]) as db:
        counts = {chart: len(db.execute(text).fetchall()) for chart, text in texts}
    assert counts["projection_labels"] == len(made[0].prompts)
    assert counts["dataset_norms"] == 3 * 3
    assert counts["dataset_similarity"] == 2 * 3
    assert all(counts.values())
    tab.page.close()
