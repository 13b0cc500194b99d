"""The report: what is on the page, what happens in a browser, and runs that have less than everything."""

import base64
import csv
import gzip
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from report_pages import edit_states, unpack, written
from synthetic import Shape, make_run

from warehouse.assets import asset_dir
from warehouse.catalog import catalog
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.report import page
from warehouse.report.write import write_report


def test_the_page_needs_nothing_but_itself(pages):
    html = pages[0].read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert "unsafe-eval" not in html
    outside = r"<(?:script|img|iframe|link|source)[^>]*\s(?:src|href)\s*="
    assert not re.findall(outside, re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL))


def test_tables_are_packed_once_by_column(pages):
    tables = unpack(pages[0].read_text(encoding="utf-8"))
    intra = tables["intra"]
    assert intra["rows"] == 32  # four sites and layers, each like with like and at the last tokens
    assert set(intra["columns"]) == {
        "run_id", "prompt_id", "run", "compared", "site", "layer", "cosine", "mae", "jaccard",
    }  # fmt: skip
    assert len(intra["columns"]["cosine"]) == 32
    assert sorted(intra["columns"]["site"]["values"]) == [
        "attn_out",
        "hidden_in",
        "hidden_out",
        "mlp_down_out",
    ]


def test_nan_and_infinity_are_gaps():
    packed = page.pack(
        pa.table({"x": [1.0, np.nan, np.inf, -np.inf, None], "t": ["a", None, "b", "a", "a"]})
    )
    table = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert table["columns"]["x"] == [1.0, None, None, None, None]
    assert table["columns"]["t"] == {"values": ["a", "b"], "codes": [0, -1, 1, 0, 0]}


def test_rounding_keeps_five_digits_of_any_size():
    values = np.array([0.0, 1.23456789, -12345678.9, 1.23456789e-12, 1e300, 5e-324])
    assert page.significant(values) == pytest.approx(values, rel=1e-4, abs=1e-320)
    assert json.dumps(page.significant(np.array([0.123456789])).tolist()) == "[0.12346]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a␀b"),
        ("x\u202ey", "x⟨U+202E⟩y"),
        ("\ud800", "⟨U+D800⟩"),
        ("naïve\n日本 🙂", "naïve\n日本 🙂"),
    ],
)
def test_unseen_characters_are_shown(text, shown):
    assert page.visible(text) == shown


def test_every_query_and_chart_says_what_it_is():
    folder = asset_dir("reports")
    for path in folder.glob("queries/*.sql"):
        assert re.match(r"-- [A-Za-z].+[.:]\n", path.read_text(encoding="utf-8")), path.name
    for name, chart in page.charts(with_datasets=True).items():
        assert chart["description"], name
        assert chart["data"] == {"name": "rows"}, name
        assert chart["width"] == chart["height"] == "container", name


def test_the_report_imports_no_torch(two_runs, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from warehouse.lake.lake import Lake\nfrom warehouse.report.write import write_report\n"
        f"write_report(Lake(Path({str(two_runs[0].warehouse)!r})), out=Path({str(tmp_path / 'r.html')!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_prints_the_paths(two_runs, tmp_path):
    arguments = [
        "-w",
        str(two_runs[0].warehouse),
        "report",
        "alpha",
        "--out",
        str(tmp_path / "new" / "r.html"),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.output.strip() == str(tmp_path / "new" / "r.html")
    html = (tmp_path / "new" / "r.html").read_text(encoding="utf-8")
    assert "<h1><bdi>alpha</bdi></h1>" in html
    assert 'id="inter"' not in html


# --- CSV ------------------------------------------------------------------------------------------------------

STATISTICS = (
    "mean_cosine std_cosine median_cosine min_cosine most_divergent_layer mean_MAE std_MAE median_MAE max_MAE_layer "
    "mean_overlap std_overlap median_overlap min_overlap min_overlap_layer"
)
CSV_COLUMNS = {
    "intra_run_report": f"run generated prompt source {STATISTICS}",
    "intra_run_cosines": "run source layer cosine MAE overlap",
    "comparison_report": f"state pair run_a run_b generated_a generated_b prompt_a prompt_b source {STATISTICS}",
    "comparison_cosines": "state pair run_a run_b source layer cosine MAE overlap",
}


def test_csv_files_have_their_columns_and_four_decimals(two_runs, tmp_path):
    lake, alpha, beta = two_runs
    paths = write_report(lake, out=tmp_path / "r.html", csv_dir=tmp_path / "csv")
    assert [path.stem for path in paths[1:]] == list(CSV_COLUMNS)
    rows = {}
    for path in paths[1:]:
        with path.open(encoding="utf-8", newline="") as file:
            rows[path.stem] = list(csv.DictReader(file))
        assert " ".join(rows[path.stem][0]) == CSV_COLUMNS[path.stem]
    assert len(rows["intra_run_cosines"]) == 2 * 4 * 3
    assert len(rows["comparison_cosines"]) == 2 * 4 * 3
    assert re.fullmatch(r"-?\d+\.\d{4}", rows["intra_run_report"][0]["mean_cosine"])
    assert {row["run"] for row in rows["intra_run_report"]} == {alpha, beta}
    assert rows["comparison_report"][0]["pair"] == f"{alpha} × {beta}"
    assert [
        path.name
        for path in write_report(lake, [alpha], out=tmp_path / "r.html", csv_dir=tmp_path / "one")[
            1:
        ]
    ] == ["intra_run_report.csv", "intra_run_cosines.csv"]


# --- runs that have less than everything ----------------------------------------------------------------------


def test_no_runs_says_how_to_capture_one(lake):
    lake.prepare()
    with pytest.raises(AlabError, match=r"(?s)no runs yet.*alab capture"):
        write_report(lake)


def test_an_unknown_run_names_those_there_are(two_runs):
    with pytest.raises(AlabError, match="alpha"):
        write_report(two_runs[0], ["nonsense"])


@pytest.mark.parametrize("option", ["--out", "--csv-dir"])
def test_an_unwritable_path_is_one_clear_error(two_runs, tmp_path, option):
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "below"
    arguments = [
        "-w",
        str(two_runs[0].warehouse),
        "report",
        "--out",
        str(tmp_path / "r.html"),
        option,
        str(target),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "cannot write" in result.output
    assert option in result.output


def parts(html: str) -> set[str]:
    return set(re.findall(r'<section id="([\w-]+)"', html))


EVERYTHING = {
    "findings",
    "conversation",
    "intra",
    "references",
    "generation",
    "residual",
    "logit-lens",
    "about",
}


@pytest.mark.parametrize(
    ("shape", "missing"),
    [
        (Shape(lens=True), set()),
        (Shape(), {"logit-lens"}),
        (Shape(labels=(), lens=True), {"references"}),
        (Shape(attention=False, lens=True), set()),
        (Shape(outputs=False, lens=True), set()),
        (Shape(activations=False, lens=True), set()),
        (Shape(steps=1, lens=True), set()),
        (Shape(sites=("hidden_in", "hidden_out", "attn_out"), lens=True), set()),
        (Shape(messages=1, lens=True), set()),
    ],
    ids=[
        "everything",
        "no lens",
        "no references",
        "no attention",
        "no outputs",
        "no activations",
        "one step",
        "a site less",
        "no user",
    ],
)
def test_a_run_with_less_has_a_page_with_less(lake, shape, missing):
    make_run(lake, shape=shape)
    html = written(lake)
    assert parts(html) == EVERYTHING - missing
    tables = unpack(html)
    if not shape.activations:
        assert "cross_layer-0" not in tables
        assert set(tables["residual-0"]["columns"]["step"]) == {0, shape.steps - 1}
    if shape.steps == 1:
        assert "single forward pass" in html


def test_the_lens_is_drawn_for_the_last_64_tokens(lake):
    make_run(lake, shape=Shape(layers=2, steps=70, lens=True))
    lens = unpack(written(lake))["logit_lens-0"]["columns"]
    assert len(set(lens["position"])) == 64
    assert max(lens["position"]) == 12 + 69 - 1
    with catalog.connect(lake) as db:
        assert db.execute("SELECT count(DISTINCT position) FROM logit_lens").fetchone()[0] == 70


def test_nothing_generated_leaves_the_comparison_out(lake):
    run_id = make_run(lake, shape=Shape(lens=True))
    reply = (pa.compute.field("state") == "snapshot") & (
        pa.compute.field("state_index") == Shape().messages
    )
    edit_states(
        lake, run_id, lambda table: table.filter(~((pa.compute.field("state") == "final") | reply))
    )
    assert parts(written(lake)) == EVERYTHING - {"intra"}


def test_layers_left_out_stay_left_out(lake):
    run_id = make_run(lake, shape=Shape(layers=5))
    edit_states(lake, run_id, lambda table: table.filter(pa.compute.field("layer") != 2))
    assert set(unpack(written(lake))["intra"]["columns"]["layer"]) == {0, 1, 3, 4}


def test_dropped_activations_leave_the_states(lake):
    run_id = make_run(lake, shape=Shape(lens=True))
    result = CliRunner().invoke(
        main, ["-w", str(lake.warehouse), "rm", run_id, "--activations-only", "--yes"]
    )
    assert result.exit_code == 0, result.output
    html = written(lake)
    assert parts(html) == EVERYTHING
    assert "were dropped" in html


def test_two_models_that_do_not_compare_say_why(lake):
    make_run(lake, "narrow", Shape(width=16), model_id="package:narrow")
    make_run(lake, "wide", Shape(width=32), model_id="package:wide")
    html = written(lake)
    assert "No two of these runs can be compared" in html
    assert "16 and 32 wide" in html


def test_many_pairs_show_the_extremes_and_say_so(lake):
    for seed in range(7):
        make_run(
            lake, f"run{seed}", Shape(layers=2, messages=2, labels=(), attention=False), seed=seed
        )
    html = written(lake)
    assert len(re.findall(r'<details class="run" id="pair-', html)) == 16
    assert "Of 21 pairs, the 8 least and the 8 most alike" in html
