"""A warehouse that alab 0.1 captured: whatever changes, it opens, answers as it did, reports and checks.

`fixtures/warehouse-0.1.tar.gz` holds three runs of a tiny random llama (a conversation with references and a logit
lens, a short one in float32, and the passes of a `generate`) and the catalog of that time; the JSON beside it holds
what that alab answered.
"""

import json
import tarfile
from pathlib import Path

import pytest

import warehouse
from warehouse.catalog.check import check
from warehouse.lake.lake import Lake

FIXTURES = Path(__file__).parent / "fixtures"
ANSWERS = json.loads((FIXTURES / "warehouse-0.1.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """The warehouse's directory; read only, but for what opening it brings up to date."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(FIXTURES / "warehouse-0.1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "lab"


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_those_of_its_time(older, name):
    asked = ANSWERS[name]
    rows = warehouse.open(older).sql(asked["sql"], **asked["params"]).fetchall()
    assert [list(row) for row in rows] == asked["rows"]


def test_columns_that_came_later_are_null(older):
    lab = warehouse.open(older)
    assert lab.sql("SELECT count(weights_hash), count(*) FROM runs").fetchall() == [(0, 3)]
    assert lab.sql(
        "SELECT count(continuity_error), count(changed), count(*) FROM layers"
    ).fetchall() == [(0, 0, 9)]
    assert lab.sql("SELECT count(n), count(*) FROM reference_states").fetchall() == [(0, 6)]
    later = "SELECT (SELECT count(batch_error) FROM layers), (SELECT count(row_id) FROM prompts)"
    assert lab.sql(later).fetchall() == [(0, 0)]


def test_it_has_no_datasets_and_a_matrix_of_each_conversation(older):
    lab = warehouse.open(older)
    assert lab.sql("FROM labels_of('latest')").fetchall() == []
    assert lab.sql("SELECT count(*) FROM positions").fetchall() == [(0,)]
    run = next(row[0] for row in lab.runs().fetchall() if row[1] == "talk")
    vectors, labels = lab.matrix(run, "hidden_out", 1, "all")
    assert (vectors == lab.tensor(run, "hidden_out", layer=1)).all()
    assert labels.column_names == ["prompt_id", "position"]


def test_it_is_sound(older):
    warehouse.open(older).runs()
    assert check(Lake(older), deep=True) == []


def test_it_reports_and_its_tensors_are_read(older, tmp_path):
    lab = warehouse.open(older)
    page = lab.report(out=tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("talk_2026", "short_2026", "mine_2026"))
    run = next(row[0] for row in lab.runs().fetchall() if row[1] == "talk")
    assert lab.tensor(run, "hidden_out", layer=1).shape[1] == 32
    assert lab.inspect(run).splitlines()[1].endswith("talk")


def test_new_runs_stand_beside_old_ones(older, llama):
    loaded, _ = llama
    lab = warehouse.open(older)
    run = warehouse.record(
        loaded.model, loaded.tokenizer, [{"role": "user", "content": "Hi"}], warehouse=older,
        generation={"max_new_tokens": 2},
    )  # fmt: skip
    assert lab.sql("SELECT count(*) FROM runs").fetchall() == [(4,)]
    assert lab.sql("SELECT count(*) FROM inter_run_all_summary()").fetchall()[0][0] > 0
    lab.remove(run)
