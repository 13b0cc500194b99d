"""Where a warehouse lies: every path that works gives the same answers, a copy never answers for its original."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake

SMALL = Shape(layers=3, steps=3, messages=3, labels=("joy",), lens=True)
QUESTIONS = (
    "SELECT run_id, layer, count(*), sum(step), any_value(kind), sum(hidden_out[1]) FROM activations GROUP BY ALL ORDER BY ALL",
    "SELECT layer, count(*), sum(weights[1]) FROM attention_of('latest') GROUP BY ALL ORDER BY ALL",
    "SELECT run_id, count(*), sum(step), sum(logits[1]) FROM outputs GROUP BY ALL ORDER BY ALL",
    "SELECT run_id, state, label, layer, site, sum(vector[2]) FROM states GROUP BY ALL ORDER BY ALL",
    "SELECT run_id, site, layer, rank, min(logprob) FROM logit_lens GROUP BY ALL ORDER BY ALL",
    "FROM intra_run('latest')",
    "FROM residual_decomposition('latest')",
)
USABLE = (
    "run=5/layer=3", "RUN=5/Layer=9/steps=0-0", "step=0/kind=x/state=final/label=joy/site=q", "hidden_in=3/vector=1",
    "lr=0.1,seed=3", "a=%2F", "=", "filename=x", "[1]", "*", "{x,y}", "it's", 'a "b"', "a\nb\tc", "$x", "50%", "a b",
    "ü日本", ";", "a]b[!c]", "#", "~", "a:b", "s3:", "-x", "|a|", "..a", "a,b", "^!&()", "/".join(["y" * 200] * 3),
)  # fmt: skip
DUCKDB = shutil.which("duckdb", path=str(Path(sys.executable).parent)) or shutil.which("duckdb")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("original") / "lab")
    for seed, name in enumerate(("one", "two")):
        make_run(lake, name, SMALL, seed=seed)
    catalog.sync(lake)
    return lake


@pytest.fixture(scope="module")
def answers(original):
    with catalog.connect(original) as db:
        return [db.execute(sql).fetchall() for sql in QUESTIONS]


def plain(lake: Lake):
    """The catalog as another program opens it."""
    return duckdb.connect(str(lake.catalog), read_only=True)


@pytest.mark.parametrize("name", [
    name if "/" in name or name in ("[1]", "*", "it's", "$x", "ü日本") else pytest.param(name, marks=pytest.mark.soak)
    for name in USABLE
])  # fmt: skip
def test_a_warehouse_may_be_anywhere(original, answers, tmp_path, name):
    lake = Lake(tmp_path / name / "lab")
    shutil.copytree(original.root, lake.root)
    with catalog.connect(lake) as db:
        assert [db.execute(sql).fetchall() for sql in QUESTIONS] == answers
    with plain(lake) as db:
        assert [db.execute(sql).fetchall() for sql in QUESTIONS] == answers


def test_a_capture_below_folders_like_partitions(answers, tmp_path):
    lake = Lake(tmp_path / "layer=7" / "run=x" / "lab")
    run_id = make_run(lake, "one", SMALL)
    catalog.sync(lake)
    sql = "SELECT DISTINCT run_id, layer FROM activations ORDER BY ALL"
    with plain(lake) as db:
        assert db.execute(sql).fetchall() == [(run_id, 0), (run_id, 1), (run_id, 2)]
        assert (
            files_read(
                db, f"SELECT hidden_in FROM activations WHERE run_id = '{run_id}' AND layer = 1"
            )
            == 1
        )


@pytest.mark.skipif(DUCKDB is None, reason="needs the duckdb command line: pip install duckdb-cli")
@pytest.mark.parametrize("name", ["run=5/layer=3", "it's [1] {x,y} * $", "ü日本\nb"])
def test_the_command_line_reads_it_from_anywhere(original, answers, tmp_path, name):
    lake = Lake(tmp_path / name / "lab")
    shutil.copytree(original.root, lake.root)
    catalog.sync(lake)
    command = [
        DUCKDB,
        "-readonly",
        "-csv",
        "-noheader",
        "alab.duckdb",
        "-c",
        "SELECT count(*) FROM intra_run('latest')",
    ]
    done = subprocess.run(command, cwd=lake.warehouse, capture_output=True, text=True)
    assert done.stdout.strip() == str(len(answers[5])), done.stderr


@pytest.mark.parametrize("name", ["a?b", "a\\b", "?", "x=?y", "[?]", "a\udcffb", "\\"])
def test_what_duckdb_cannot_open_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(AlabError, match="there can be no warehouse at") as refused:
        Lake(tmp_path / name / "lab")
    str(refused.value).encode()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / name)
    with pytest.raises(AlabError, match="there can be no warehouse at"):
        Lake(link / "lab")
    assert list(tmp_path.iterdir()) == [link]


@pytest.fixture
def copy(original, tmp_path) -> Lake:
    lake = Lake(tmp_path / "copy")
    shutil.copytree(original.warehouse, lake.warehouse)
    return lake


@pytest.mark.parametrize("sql", [
    *QUESTIONS, "FROM outputs_of('latest')", "FROM logit_lens_of('latest')", "FROM states_of('nope')",
    "SELECT count(*) FROM states WHERE run_id = 'nope'", "FROM inter_run_all()", "FROM unembedding_of('nope')",
])  # fmt: skip
def test_a_copy_does_not_answer_for_its_original(copy, sql):
    with (
        plain(copy) as db,
        pytest.raises(duckdb.Error, match=r"copied or moved.*alab -w ITS_FOLDER runs.*alab_lake"),
    ):
        db.execute(sql).fetchall()


def test_a_copy_is_mended_by_alab_and_reads_its_own_lake(original, copy):
    copy.remove(copy.run_ids()[0])
    with plain(copy) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]
        db.execute("SET VARIABLE alab_lake = ?", [str(copy.root)])
        assert len(db.execute("SELECT DISTINCT run_id FROM states_of('latest')").fetchall()) == 1
    with catalog.connect(copy) as db:
        assert len(db.execute("SELECT DISTINCT run_id FROM states").fetchall()) == 1
    with plain(copy) as db:
        assert len(db.execute("SELECT DISTINCT run_id FROM states").fetchall()) == 1
    with plain(original) as db:
        assert len(db.execute("SELECT DISTINCT run_id FROM states").fetchall()) == 2


@pytest.mark.parametrize(
    "path", ["alab.duckdb", "./alab.duckdb", "../{name}/alab.duckdb", "../link/alab.duckdb"]
)
def test_the_same_file_by_another_path_answers(copy, monkeypatch, path):
    catalog.sync(copy)
    (copy.warehouse.parent / "link").symlink_to(copy.warehouse)
    monkeypatch.chdir(copy.warehouse)
    with duckdb.connect(path.format(name=copy.warehouse.name), read_only=True) as db:
        assert db.execute("SELECT count(*) FROM states").fetchall()[0][0] > 0
    linked = Lake(copy.warehouse.parent / "link")
    catalog.sync(linked)
    with plain(copy) as db:
        assert db.execute("SELECT count(*) FROM states").fetchall()[0][0] > 0


def test_a_catalog_that_is_rebuilt_is_in_place(copy):
    from warehouse.catalog.check import rebuild

    rebuild(copy)
    with plain(copy) as db:
        assert db.execute("SELECT count(*) FROM states").fetchall()[0][0] > 0


def test_attached_under_another_name(original):
    with duckdb.connect() as db:
        db.execute(f"ATTACH '{original.catalog}' AS l (READ_ONLY)")
        assert db.execute("SELECT count(*) FROM l.states").fetchall()[0][0] > 0
        db.execute("USE l")
        assert db.execute("SELECT count(*) FROM run_overview()").fetchall() == [(2,)]
        assert db.execute("SELECT count(*) FROM intra_run('latest')").fetchall()[0][0] > 0


def files_read(db, sql: str) -> int:
    """How many files DuckDB opened for a query."""
    plan = db.execute(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1]
    return sum(map(int, re.findall(r"Files Read: (\d+)", plan)))


@pytest.mark.parametrize(("sql", "files"), [
    ("SELECT hidden_in FROM activations WHERE run_id = '$one'", 3),
    ("SELECT hidden_in FROM activations WHERE run_id = resolve_run('on') AND layer = 2", 1),
    ("SELECT hidden_in FROM activations_of('latest')", 3),
    ("SELECT hidden_in FROM activations_of('latest:one')", 3),
    ("SELECT hidden_in FROM activations_of('on') WHERE layer = 0", 1),
    ("SELECT vector FROM states_of(['on', 'latest:two'])", 2),
    ("SELECT vector FROM states", 2),
    ("SELECT vector FROM states WHERE run_id IN ('$one')", 1),
])  # fmt: skip
def test_only_the_files_of_the_runs_that_are_meant_are_opened(original, sql, files):
    with plain(original) as db:
        assert files_read(db, sql.replace("$one", original.run_ids()[0])) == files
    with catalog.connect(original) as db:
        assert files_read(db, sql.replace("$one", original.run_ids()[0])) == files
