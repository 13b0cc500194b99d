"""What a figure claims to show is what it draws: the words stand once, with the column that they are about."""

import colorsys
import json
import re

import pytest
from report_pages import unpack, written
from synthetic import Shape, make_run

from warehouse.assets import asset_dir
from warehouse.catalog import catalog
from warehouse.report import page
from warehouse.report.page import ROLES

CHARTS = page.charts(with_datasets=True)
MEASURES = page.measures(with_datasets=True)
#: Columns that say where a value is, not how large something is.
PLACES = {
    "layer",
    "layer_a",
    "layer_b",
    "step",
    "message_index",
    "turns_since",
    "place",
    "left",
    "pc1",
    "class",
}
METRICS = {"cosine", "mae", "jaccard"}
#: What `$name` in a chart's file can be: the page's metrics, or what a figure fixes.
OPEN = {"$metric": METRICS, "$measure": {"entropy", "top1_prob"}}
every_chart = pytest.mark.parametrize("name", sorted(CHARTS))


def measures(chart: dict) -> set[str]:
    """Every column that a chart can draw."""
    measure = chart["usermeta"]["measure"]
    names = [measure] if isinstance(measure, str) else list(measure.values())
    return set().union(*(OPEN.get(name, {name}) for name in names))


def encodings(part: dict):
    """Every channel of a chart and of its layers, with what it encodes."""
    for channel, what in part.get("encoding", {}).items():
        for one in what if isinstance(what, list) else [what]:
            if one:
                yield channel, one
    for layer in part.get("layer", []):
        yield from encodings(layer)


def transforms(part: dict):
    yield from part.get("transform", [])
    for layer in part.get("layer", []):
        yield from transforms(layer)


@every_chart
def test_a_chart_draws_the_column_that_it_names(name):
    chart = CHARTS[name]
    assert measures(chart) <= set(MEASURES)
    drawn = {
        what["field"]
        for channel, what in encodings(chart)
        if what.get("type") == "quantitative"
        and channel != "tooltip"
        and what["field"] not in PLACES
    }
    assert drawn == {"value"}
    makes = [
        one
        for one in transforms(chart)
        if one.get("as") == "value" or "value" in (one.get("as") or [])
    ]
    if "columns" in chart["usermeta"]:  # several columns in one chart, each named after the measure
        (measure,) = measures(chart)
        stem = measure.removesuffix("_out") if measure == "cosine_out" else measure
        assert all(column.startswith(f"{stem}_") for column in chart["usermeta"]["columns"])
        (fold,) = [one for one in makes if "fold" in one]
        sources = {
            one["as"]: one["calculate"]
            for one in transforms(chart)
            if one.get("as") in fold["fold"]
        }
        assert [sources[part] for part in fold["fold"]] == [
            f"datum.{c}" for c in chart["usermeta"]["columns"]
        ]
        assert all(
            column == f"{stem}_{part}"
            for column, part in zip(chart["usermeta"]["columns"], fold["fold"], strict=True)
        )
    else:
        assert makes[0] == {"calculate": "datum[field]", "as": "value"}
        assert {"name": "field", "value": "cosine"} in chart["params"]


@every_chart
def test_the_words_for_the_column_come_from_one_place(name):
    chart = CHARTS[name]
    texts = ("title", "title + ' at ' + site", "title + ', layer ' + layer")
    assert chart["title"]["text"]["expr"] in texts
    assert chart["title"]["subtitle"]["expr"] in ("reading", "site", "[reading, explained[layer]]")
    channels = {channel for channel, what in encodings(chart) if what.get("field") == "value"}
    assert chart["usermeta"]["channel"] in channels
    if chart["usermeta"]["channel"] == "color":
        assert all(MEASURES[measure]["colour"] for measure in measures(chart))
    # a caption may speak of what the chart always draws, and of nothing that a switch may put in its place
    own = measures(chart) if len(measures(chart)) == 1 else set()
    allowed = " ".join(f"{MEASURES[one]['title']} {MEASURES[one]['words']}" for one in own).lower()
    said = f"{chart['usermeta']['title']} {chart['usermeta']['how']}"
    for measure, words in MEASURES.items():
        hits = re.findall(rf"\b(?:{words['words']})\b", said, re.IGNORECASE)
        assert all(hit.lower() in allowed for hit in hits), f"{name} speaks of {measure}: {said}"


@every_chart
def test_tooltips_call_a_column_by_its_name(name):
    for channel, what in encodings(CHARTS[name]):
        if channel == "tooltip" and what["field"] in MEASURES and what["field"] != "probability":
            assert what["title"] == MEASURES[what["field"]]["short"]


def test_captions_in_templates_speak_of_no_column():
    """A figure's words are in its chart's file; what a template adds says which rows they are."""
    folder = asset_dir("reports") / "parts"
    calls = [
        call
        for path in folder.glob("*.j2")
        for call in re.findall(r"ui\.figure\((.*?)\) }}", path.read_text(encoding="utf-8"))
    ]
    assert len(calls) > 20
    for call in calls:
        chart = re.match(r'"(\w+)"', call)[1]
        if chart in CHARTS:
            assert not re.search(r"\b(title|how)=", call), call


@pytest.fixture(scope="module")
def figures(pages):
    """Every figure of two pages: chart, table, what is fixed, and the table's columns."""
    found = []
    for path in pages:
        html = path.read_text(encoding="utf-8")
        tables = unpack(html)
        for tag in re.findall(r"<figure [^>]*>", html):
            data = dict(re.findall(r'data-([\w-]+)="([^"]*)"', tag))
            if data["chart"] in CHARTS:
                fix = json.loads(data.get("fix", "{}").replace("&#34;", '"'))
                found.append((data["chart"], data["table"], fix, tables[data["table"]]["columns"]))
    return found


def test_every_column_that_is_drawn_is_in_the_data_as_a_number(figures):
    assert {chart for chart, *_ in figures} == set(page.charts()) - {"conversation_counts"}
    for chart, table, fix, columns in figures:
        fixed = {fix[name] for name in ("metric", "measure") if name in fix}
        wanted = CHARTS[chart]["usermeta"].get("columns") or (fixed or measures(CHARTS[chart]))
        for name in wanted:
            values = columns[name]
            assert isinstance(values, list), f"{chart} draws {name} of {table}"
            assert all(value is None or isinstance(value, int | float) for value in values)
            assert any(value is not None for value in values), f"{name} of {table} is empty"


@pytest.mark.parametrize(
    ("table", "keys", "column", "query"),
    [
        ("message_means-0", ("message_index", "label", "site"), "hundredths",
         "SELECT message_index, label, site, 100 * shift FROM reference_shift('latest')"),
        ("message_means-0", ("message_index", "label", "site"), "cosine_centred",
         "SELECT message_index, label, site, avg(cosine) FROM snapshot_cosine('latest', centered := true) GROUP BY ALL"),
        ("message_means-0", ("message_index", "label", "site"), "mae",
         "SELECT message_index, label, site, avg(mae) FROM snapshot_reference('latest') GROUP BY ALL"),
        ("references-0", ("message_index", "label", "site", "layer"), "jaccard",
         "SELECT message_index, label, site, layer, jaccard FROM snapshot_reference('latest')"),
        ("turns-0", ("message_index", "site"), "cosine",
         "SELECT message_index, site, avg(cosine) FROM turn_shift('latest') GROUP BY ALL"),
        ("discriminative-0", ("scale", "role", "site", "layer"), "spread_centred",
         "SELECT 'centred', role, site, layer, spread FROM discriminative_layers('latest', centered := true)"),
        ("damping-0", ("scale", "site", "reference"), "damping",
         "SELECT 'raw', site, coalesce(label, 'all references'), damping FROM damping('latest')"),
        ("residual-0", ("step", "layer"), "norm_attn_out",
         "SELECT step, layer, norm_attn_out FROM residual_decomposition('latest')"),
    ],
)  # fmt: skip
def test_a_column_means_what_its_analysis_says(lake, table, keys, column, query):
    make_run(lake, shape=Shape(layers=3))
    columns = unpack(written(lake))[table]["columns"]

    def values(name):
        own = columns[name]
        return (
            own
            if isinstance(own, list)
            else [own["values"][code] if code >= 0 else None for code in own["codes"]]
        )

    rows = {
        key: value
        for *key, value in zip(*map(values, (*keys, column)), strict=True)
        for key in [tuple(key)]
    }
    with catalog.connect(lake) as db:
        wanted = db.execute(query).fetchall()
    assert wanted
    for *key, value in wanted:
        assert rows[tuple(key)] == (
            None if value is None else pytest.approx(value, rel=1e-4, abs=1e-9)
        )


def test_a_role_has_the_hue_of_its_messages():
    css = (asset_dir("reports") / "report.css").read_text()
    series = re.search(r"--series: ([^;]+);", css)[1].split(", ")

    def hue(colour: str) -> float:
        return 360 * colorsys.rgb_to_hsv(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))[0]

    for role in ("user", "assistant"):
        of_messages = re.search(rf"--{role}: (#\w+);", css)[1]
        assert abs(hue(series[ROLES.index(role)]) - hue(of_messages)) < 30, role
