"""Names in a query that mean nothing are told, with those there are; `alab sql` and Python find the same runs."""

import doctest

import pytest
from click.testing import CliRunner
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog, sqldoc
from warehouse.catalog.runs import find_run
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.query import hints


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    """Two runs of `talk` and one of `talker`, the last without references and with more layers."""
    lake = Lake(tmp_path_factory.mktemp("hints") / "lab")
    small = Shape(layers=3, steps=4, messages=3, labels=("joy", "fear"))
    for number in range(2):
        make_run(lake, "talk", small, seed=number)
    make_run(lake, "talker", Shape(layers=5, steps=2, messages=3, labels=()))
    catalog.sync(lake)
    return lake


@pytest.fixture(scope="module")
def runs(lake):
    """Ids of the older run of `talk`, the newer one, and the run of `talker`."""
    with catalog.connect(lake) as db:
        newest = [
            row[0]
            for row in db.execute(
                "SELECT run_id FROM runs ORDER BY created_at DESC, run_id DESC"
            ).fetchall()
        ]
    talks = [run_id for run_id in newest if run_id.startswith("talk_")]
    return talks[1], talks[0], next(run_id for run_id in newest if run_id.startswith("talker_"))


@pytest.fixture
def alab(lake):
    def run(sql):
        return CliRunner().invoke(main, ["-w", str(lake.warehouse), "sql", sql])

    return run


def test_the_examples_in_the_documentation():
    assert doctest.testmod(hints).failed == 0


@pytest.mark.parametrize(("sql", "hint"), [
    ("from direction('$old', 'joy', 'feer')", "there is no label 'feer' in $old; did you mean 'fear'? the labels are: fear, joy"),
    ("from direction('$old', negative_label := 'sad', positive_label := 'joy')", "there is no label 'sad' in $old; the labels are: fear, joy"),
    ("select count(*) from states where label = 'feer'", "there is no label 'feer'; did you mean 'fear'? the labels are: fear, joy"),
    ("select 1 from states s where s.label in ('joy', 'anger')", "there is no label 'anger'; the labels are: fear, joy"),
    ("from token_projection('talker', 'joy', 'fear', 1, 'hidden_out')", "there is no label 'joy' in $other: it has no reference states"),
    ("from activations where layer = 99", "there is no layer 99; the layers are: 0-4"),
    ("from activations where layer in (0, 99)", "there is no layer 99; the layers are: 0-4"),
    ("from activations_of('$old') where layer = 4", "there is no layer 4 in $old; the layers are: 0-2"),
    ("from token_similarity('$old', 77, 'hidden_out', 2)", "there is no layer 77 in $old; the layers are: 0-2"),
    ("from cross_layer_cosine('$old', 9, 'hidden_out')", "there is no step 9 in $old; the steps are: 0-3"),
    ("from steps where 99 = step", "there is no step 99; the steps are: 0-3"),
    ("from prompts where prompt_id <> 7", "there is no prompt 7; the prompts are: 0"),
    ("from snapshots where message_index = -1", "there is no message -1; the messages are: 0-3"),
    ("from states where site = 'hiden_out'", "there is no site 'hiden_out'; did you mean 'hidden_out'? the sites are: "),
    ("select count(*) from sites where \"site\" = 'zz'", "there is no site 'zz'; the sites are: "),
    ("from runs where model_id = 'gpt'", "there is no model 'gpt'; the models are: package:synthetic"),
    ("from unembedding_of('gpt')", "there is no model 'gpt'; the models are: package:synthetic"),
    ("from steps where run_id = 'latest'", "a column has whole run ids, none is 'latest'; write resolve_run('latest')"),
    ("from steps s where s.run_id in ('talker')", "a column has whole run ids, none is 'talker'; write resolve_run('talker')"),
    ("from steps where run_id = 'latest:talk'", "write resolve_run('latest:talk')"),
    ("from steps where run_id = 'talk_'", "there is no run 'talk_'; the newest are: $new, $old"),
    ("from inter_run_all() where run_a = 'nope'", "there is no run 'nope'; the newest are: "),
    ("from intra_run(['$old', 'nope'])", "there is no run 'nope'; the newest are: "),
    ("from intra_run('latest:nope')", "there is no run 'latest:nope'; the newest are: "),
    ("select * from steps where run_id = resolve_run('nope')", "there is no run 'nope'; the newest are: "),
    ("with a as (from intra_run('latest:talk')) from a where layer = 50 -- and layer = 60", "there is no layer 50 in $new; the layers are: 0-2"),
])  # fmt: skip
def test_a_name_that_nothing_has(alab, runs, sql, hint):
    for name, run_id in zip(("$old", "$new", "$other"), runs, strict=True):
        sql, hint = sql.replace(name, run_id), hint.replace(name, run_id)
    result = alab(sql)
    assert result.exit_code == 0, result.stderr
    assert hint in result.stderr
    assert len(result.stderr.splitlines()) <= 2, result.stderr


@pytest.mark.parametrize("sql", [
    "from direction('latest:talk', 'joy', 'fear') where layer = 2 and site = 'hidden_out'",
    "from activations where layer = 4 and step = 1 and prompt_id = 0",
    "select mlp_act from activations where run_id = resolve_run('talker')",
    "from tensor_of('talker', 'mlp_act')",
    "from steps where run_id = '$old'",
    "from help where kind = 'table' and name = 'layer'",
    "select 'layer = 99' as text, layer from states -- where layer = 99",
    "select * from (select 99 as layer) where layer = 'x' or label_of = 'y'",
    "select unnest(range(5)) as step",
    "from states where layer = (select 99)",
    "select top_dims([1, 2], 99)",
    "from states where state = 'final' and label is null",
])  # fmt: skip
def test_names_that_mean_something_give_no_hint(alab, runs, sql):
    result = alab(sql.replace("$old", runs[0]))
    told = [line for line in result.stderr.splitlines() if line.startswith("hint")]
    assert told == []


def test_every_argument_that_names_something_is_looked_at():
    """An analysis of tomorrow needs no line here, if its arguments are called like those of today."""
    looked_at = {
        name for item in sqldoc.library() for name in item.arguments if hints._ARGUMENT.search(name)
    }
    assert {
        "run_id",
        "run_a",
        "run_b",
        "runs",
        "site",
        "layer",
        "step",
        "positive_label",
        "negative_label",
        "model",
    } <= looked_at


RUN_NAMES = (
    "latest",
    "latest:talk",
    "latest:talker",
    "talker",
    "$old",
    "$new",
    "$other",
    "latest:",
    "",
    "nope",
    "latest:nope",
)


@pytest.mark.parametrize("name", RUN_NAMES)
def test_a_run_has_the_same_names_in_sql_and_on_the_command_line(lake, runs, name):
    for short, run_id in zip(("$old", "$new", "$other"), runs, strict=True):
        name = name.replace(short, run_id)
    with catalog.connect(lake) as db:
        found = db.execute("SELECT resolve_run(?)", [name]).fetchone()[0]
        rows = db.execute("SELECT DISTINCT run_id FROM states_of(?)", [name]).fetchall()
        listed = db.execute("SELECT DISTINCT run_id FROM states_of([?])", [name]).fetchall()
        assert rows == listed
        try:
            expected = find_run(db, name)
        except AlabError:
            assert found == name
            assert rows == []
        else:
            assert found == expected
            assert rows == [(expected,)]


def test_an_ambiguous_prefix_is_refused_with_its_candidates(alab, lake, runs):
    for sql in ("from intra_run('talk')", "from intra_run(['latest', 'talk_'])", "select resolve_run('talk')",
                "from inter_run('talk', 'latest')", "from run_steps('talk')"):  # fmt: skip
        result = alab(sql)
        assert result.exit_code == 1
        assert "could be any of" in result.stderr
        assert runs[0] in result.stderr and runs[1] in result.stderr
        assert "Type more of the id." in result.stderr
    with catalog.connect(lake) as db, pytest.raises(AlabError, match="could be any of 2 runs"):
        find_run(db, "talk_")


# --- runs over datasets ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A dataset run and an older conversation, as functions of SQL; `$talk` and `$set` are their ids."""
    lake = Lake(tmp_path_factory.mktemp("hints") / "sets")
    talk = make_run(lake, "talk", Shape(layers=3, width=12, mlp=20, labels=()))
    made = make_dataset(lake)
    catalog.sync(lake)

    def run(sql):
        text = sql.replace("$set", made.run_id).replace("$talk", talk)
        return CliRunner().invoke(main, ["-w", str(lake.warehouse), "sql", text]), made.run_id, talk

    return run


@pytest.mark.parametrize(("sql", "hint"), [
    ("from vectors_of('$set', 1, 'hidden_out', selector := 'lst')", "there is no selector 'lst' in $set; did you mean 'last'? the selectors are: last, mean, message_ends, name"),
    ("from label_norms('$set', 'mood', selector := 'nam')", "there is no selector 'nam' in $set; did you mean 'name'?"),
    ("from label_similarity('$set', 'mood', selector := 'all')", "there is no selector 'all' in $set; the selectors are: last, mean, "),
    ("from nearest_prompts('$set', 1, 1, 'hidden_out', selector := 'Mean')", "there is no selector 'Mean' in $set; did you mean 'mean'?"),
    ("from vectors_of('$talk', 1, 'hidden_out', selector := 'name')", "there is no selector 'name' in $talk; the selectors are: all, last"),
    ("from positions where selector = 'nme'", "there is no selector 'nme'; did you mean 'name'? the selectors are: all, last, mean, message_ends, name"),
    ("from label_norms('$talk', 'mood')", "$talk is no dataset run, it has no columns"),
    ("from label_values('$talk', 'mood')", "$talk is no dataset run, it has no columns"),
    ("from vectors_of('$set', 9, 'hidden_out')", "there is no layer 9 in $set; the layers are: 0-2"),
    ("from label_direction('$set', 'mood', 'Joy', 'fear')", "no column of the dataset has the label 'Joy'; Did you mean 'joy'?"),
    ("from label_direction('$set', 'mood', 'joy', 'zzz')", "no column of the dataset has the label 'zzz'; See: label_columns(RUN)"),
    ("from label_values('$set', 'mood') where label = 'zzz'", "no column of the dataset has the label 'zzz'"),
])  # fmt: skip
def test_a_name_of_a_dataset_that_nothing_has(sets, sql, hint):
    result, made, talk = sets(sql)
    assert result.exit_code == 0, result.stderr
    assert hint.replace("$set", made).replace("$talk", talk) in result.stderr
    assert result.stderr.count("hint") <= 1


@pytest.mark.parametrize("call", ["label_norms({}, 'Mood')", "label_direction({}, 'mod', 'joy', 'fear')", "label_values({}, 'mooood')"])  # fmt: skip
def test_a_mistyped_column_is_an_error_with_the_nearest(sets, call):
    result, *_ = sets(f"from {call.format(chr(39) + '$set' + chr(39))}")
    assert result.exit_code == 1
    assert "the dataset has no column" in result.stderr
    assert "Did you mean 'mood'? What they hold: label_columns(RUN)" in result.stderr


@pytest.mark.parametrize("sql", [
    "from label_norms('$set', 'mood') where label = 'joy' and site = 'hidden_out'",
    "from label_similarity('$set', 'with space/slash~tilde', selector := 'mean')",
    "from label_direction('$set', 'mood', 'joy', 'fear')",
    "from vectors_of('latest', 1, 'hidden_out', selector := 'name')",
    "from vectors_of('$talk', 1, 'hidden_out', selector := 'all')",
    "from positions where selector in ('last', 'name')",
    "from label_columns('latest')",
])  # fmt: skip
def test_names_of_a_dataset_give_no_hint(sets, sql):
    result, *_ = sets(sql)
    assert result.exit_code == 0, result.stderr
    assert "hint" not in result.stderr
