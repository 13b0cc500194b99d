"""The library as a whole: documented to the last column, its examples run, and any DuckDB can use it."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog, sqldoc
from warehouse.lake.lake import Lake

LIBRARY = sqldoc.library()
ARGUMENTS = {
    "run_id": "'latest'", "run_a": "'$one'", "run_b": "'latest'", "runs": "['$one', 'latest']",
    "site": "'hidden_out'", "layer": "1", "step": "0", "position": "2", "neuron": "3", "k": "3",
    "positive_label": "'joy'", "negative_label": "'fear'", "kind": "'reference'",
    "vector": "(SELECT vector FROM states_of('latest') ORDER BY ALL LIMIT 1)", "prompt_id": "0",
    "pairs": "'_example_pairs'", "model": "'package:synthetic'", "resamples": "20", "seed": "0",
    "one_site": "'hidden_out'", "several": "false", "one_index": "NULL", "one_label": "NULL",
    "one_prompt": "NULL", "state": "'snapshot'", "state_a": "'snapshot'", "state_b": "'snapshot'",
    "over": "'conversation'", "selector": "'last'", "prompt": "0", "label_column": "'mood'", "a": "'joy'", "b": "'fear'",
    "wanted": "true", "refs": "['latest', '$one']", "places": "[11]", "tokens": "[3]", "alignment": "'message'",
    "at_most": "100",
}  # fmt: skip
ANALYSES = [item for item in LIBRARY if item.kind == "analysis"]
by_name = pytest.mark.parametrize("item", LIBRARY, ids=lambda item: item.name)


def call(item: sqldoc.SqlObject, run_id: str) -> str:
    """The analysis called with arguments that give rows."""
    needed = [name for name in item.arguments if f"{name} :=" not in item.signature]
    return f"{item.name}({', '.join(ARGUMENTS[name] for name in needed)})".replace("$one", run_id)


def is_of_datasets(item: sqldoc.SqlObject) -> bool:
    """Whether an analysis is about dataset runs, and has no rows of others."""
    return Path(item.file).stem in ("datasets", "labels", "vectors")


@pytest.fixture(scope="module")
def dataset_lake(tmp_path_factory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("dataset") / "lab")
    make_dataset(lake)
    catalog.sync(lake)
    return lake


@pytest.fixture
def item_lake(item, two_runs, dataset_lake) -> Lake:
    """A lake of which the item has something to say."""
    return dataset_lake if is_of_datasets(item) else two_runs[0]


@pytest.fixture
def db(item_lake):
    with catalog.connect(item_lake) as db:
        yield db


@by_name
def test_everything_is_documented(item):
    assert item.summary.endswith((".", "`")), "the summary is a sentence"
    assert list(item.params) == item.arguments
    if item.kind == "macro":
        assert item.returns
    else:
        assert item.columns
    if item.kind != "table":
        assert item.examples
    assert all(len(line) <= 118 for line in item.statement.splitlines() if "--" not in line)


@by_name
def test_every_column_is_documented(item, db, two_runs):
    if item.kind == "macro":
        return
    relation = call(item, two_runs[1]) if item.kind == "analysis" else item.name
    columns = [row[0] for row in db.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
    if any("the other columns are those of" in doc for doc in item.columns.values()):
        assert set(item.columns) <= set(columns)
    else:
        assert columns == list(item.columns)


@by_name
def test_examples_run(item, db):
    for example in item.examples:
        rows = db.execute(example).fetchall()
        if item.kind == "macro" and "from" not in example:
            assert rows[0][0] is not False, example


@by_name
def test_the_catalog_carries_the_documentation(item, db):
    summary, documentation = db.execute(
        "SELECT summary, documentation FROM help WHERE name = ?", [item.name]
    ).fetchone()
    assert summary == item.summary
    for doc in [*item.params.values(), *item.columns.values()]:
        assert doc in documentation


def test_names_are_unique():
    names = [item.name for item in LIBRARY]
    assert len(set(names)) == len(names)


def test_the_page_is_up_to_date():
    page = Path(sqldoc.__file__).parents[2] / "sql" / "README.md"
    assert page.read_text(encoding="utf-8") == sqldoc.page(), (
        "run: python -m warehouse.catalog.sqldoc > sql/README.md"
    )


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A function that asks a lake in the plain DuckDB command line, from a directory that has nothing to do with it."""
    program = shutil.which("duckdb", path=str(Path(sys.executable).parent)) or shutil.which(
        "duckdb"
    )
    if program is None:
        pytest.skip("needs the duckdb command line: pip install duckdb-cli")
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(lake: Lake, sql: str) -> list[dict]:
        arguments = [program, "-readonly", "-json", str(lake.catalog), "-c", sql]
        done = subprocess.run(arguments, cwd=elsewhere, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else []

    return run


@pytest.mark.parametrize("item", ANALYSES, ids=lambda item: item.name)
def test_the_command_line_gives_the_same(item, db, item_lake, shell, two_runs):
    relation = call(item, two_runs[1])
    cursor = db.execute(f"SELECT * FROM {relation} ORDER BY ALL")
    names = [column[0] for column in cursor.description]
    ours = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    assert ours or item.name == "run_warnings", "the analysis gives rows"
    theirs = shell(item_lake, f"SELECT * FROM {relation} ORDER BY ALL")
    assert len(theirs) == len(ours)
    for a, b in zip(ours, theirs, strict=True):
        for name in names:
            assert close(a[name], b[name]), (item.name, name, a, b)


def close(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b or str(a) == str(b)


def test_views_and_help_in_the_command_line(shell, two_runs):
    lake = two_runs[0]
    assert shell(lake, "SELECT count(*) AS n FROM states")[0]["n"] > 0
    assert shell(lake, "SELECT count(*) AS n FROM activations WHERE layer = 1")[0]["n"] > 0
    assert shell(lake, "SELECT summary FROM help WHERE name = 'cosine'") == [
        {"summary": "Cosine of the angle between two vectors."}
    ]


def test_help_lists_first_what_is_public(shell, two_runs):
    lake, sql = two_runs[0], "SELECT name FROM help"
    with catalog.connect(lake) as db:
        here = [row[0] for row in db.execute(sql).fetchall()]
    for names in (here, [row["name"] for row in shell(lake, sql)]):
        private = [name.startswith("_") for name in names]
        assert private == sorted(private)
        assert any(private) and not all(private)
