"""Analyses of dataset runs against numpy: labels of every kind, selectors, directions, neighbours."""

import re
from collections import Counter
from datetime import date
from itertools import combinations

import duckdb
import numpy as np
import pytest
from labs import Lab
from reference import cosine, same
from synthetic import Shape, make_run
from synthetic_dataset import Made, make_dataset

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

SELECTORS = ("last", "name", "message_ends", "mean")


class Sets(Lab):
    """Two dataset runs and a conversation, with what they are made of."""

    made: Made
    other: Made

    def column(self, sql: str, name: str) -> list:
        return [row[name] for row in self.rows(sql)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("datasets") / "lab")
    other = make_dataset(lake, "other", Shape(layers=2, width=8, mlp=20), rows=25, seed=5)
    talk = make_run(lake, "talk", Shape(width=12, mlp=20), seed=2)
    made = make_dataset(lake, "set", seed=1)
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        lab = Sets(db, {"set": made.run_id, "other": other.run_id, "talk": talk})
        lab.made, lab.other = made, other
        yield lab


def kinds(made: Made, selector: str) -> list[tuple[str, int]]:
    return sorted(made.means if selector == "mean" else made.values)


def test_labels_are_the_datasets_rows(lab):
    found = lab.db.sql("FROM labels_of('latest') ORDER BY prompt_id").to_arrow_table()
    assert found.column_names == ["run_id", "prompt_id", *lab.made.labels.column_names]
    for name in lab.made.labels.column_names[:-1]:
        assert found[name].to_pylist() == lab.made.labels[name].to_pylist()
        expected, kind = lab.made.labels.schema.field(name).type, found.schema.field(name).type
        assert kind == expected
    assert set(found["run_id"].to_pylist()) == {lab.made.run_id}
    assert lab.rows("FROM labels_of($talk)") == lab.rows("FROM labels_of('no such run')") == []
    both = lab.column("FROM labels_of([$set, $other])", "run_id")
    assert Counter(both) == {lab.made.run_id: 60, lab.other.run_id: 25}


@pytest.mark.parametrize(
    ("column", "label"),
    [("mood", "joy"), ("run", "2"), ("layer", "1"), ("filename", "3.txt"), ("order", "true"),
     ('a "quoted" name', "2026-01-02"), ("with space/slash~tilde", "0.5"), ("position", "1007")],
)  # fmt: skip
def test_a_column_by_its_name(lab, column, label):
    rows = {r["prompt_id"]: r["label"] for r in lab.rows(f"FROM label_values($set, '{column}')")}
    texts = [as_text(value) for value in lab.made.labels[column].to_pylist()]
    assert [rows[n] for n in range(60)] == texts
    assert label in texts


def as_text(value) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None if value is None else str(value)


def test_a_column_that_is_not_there(lab):
    with pytest.raises(
        duckdb.Error, match="the dataset has no column 'Mood'; it has: id, mood, run"
    ):
        lab.rows("FROM label_values($set, 'Mood')")
    assert lab.rows("FROM label_values($talk, 'mood')") == []


def test_what_columns_there_are(lab):
    found = {row.pop("label_column"): row for row in lab.rows("FROM label_columns($set)")}
    assert list(found) == lab.made.labels.column_names
    kinds = {"text": ("id", "mood", "filename", 'a "quoted" name'), "boolean": ("order",),
             "number": ("run", "layer", "with space/slash~tilde", "position"), None: ("f",)}  # fmt: skip
    assert {name: row["kind"] for name, row in found.items()} == {
        name: kind for kind, names in kinds.items() for name in names
    }
    for name, row in found.items():
        values = [value for value in lab.made.labels[name].to_pylist() if value is not None]
        assert (row["n"], row["missing"]) == (len(values), 60 - len(values))
        assert row["labels"] == len(set(values))
        assert row["least"] == as_text(min(values, default=None))
        assert row["greatest"] == as_text(max(values, default=None))


@pytest.mark.parametrize("selector", SELECTORS)
def test_vectors_are_those_of_the_positions(lab, selector):
    for site, layer in kinds(lab.made, selector):
        rows = lab.rows(f"FROM vectors_of($set, {layer}, '{site}', selector := '{selector}')")
        found = np.array([r["vector"] for r in rows], "f4")
        np.testing.assert_array_equal(found, lab.made.matrix(site, layer, selector))
        places = [(r["prompt_id"], r["position"]) for r in rows]
        means = [(prompt, None) for prompt in lab.made.prompts]
        assert places == (means if selector == "mean" else lab.made.selectors[selector])
    for absent in ("'q', selector := 'no such'", "'k'", "'hidden_in'"):
        assert lab.rows(f"FROM vectors_of($set, 1, {absent})") == []
    assert lab.rows("FROM vectors_of($set, 9, 'q')") == []


def test_vectors_of_several_runs_and_of_conversations(lab):
    rows = lab.rows("FROM vectors_of([$other, $set], 1, 'hidden_out')")
    assert Counter(len(r["vector"]) for r in rows) == {8: 24, 12: 59}
    tokens = lab.rows("FROM tensor_of($talk, 'q') WHERE layer = 2 ORDER BY position")[:12]
    every = lab.rows("FROM vectors_of($talk, 2, 'q', selector := 'all')")
    assert [r["vector"] for r in every] == [r["vector"] for r in tokens]
    (last,) = lab.rows("FROM vectors_of($talk, 2, 'q')")
    assert (last["position"], last["vector"]) == (11, tokens[-1]["vector"])


def files_read(lab: Sets, sql: str) -> list[int]:
    """Files that each scan of a query read."""
    plan = lab.db.execute(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1]
    assert "READ_PARQUET" in plan
    return [int(n) for n in re.findall(r"Total Files Read: *(\d+)", plan)]


@pytest.mark.parametrize(
    ("sql", "parts"),
    [
        ("SELECT vector[1] FROM vectors_of('latest', 1, 'q')", (1, 0)),
        ("SELECT vector[1] FROM vectors_of('latest', 1, 'hidden_out', selector := 'mean')", (0, 1)),
        ("FROM label_direction('latest', 'mood', 'joy', 'fear') WHERE site = 'q' AND layer = 1", (1, 0)),
        ("FROM label_norms('latest', 'mood') WHERE site = 'q' AND layer = 1", (1, 0)),
    ],
)  # fmt: skip
def test_one_layer_is_opened_and_no_other(lab, sql, parts):
    """The plan says how many files were read: `parts` are layers of the activations, and files of states."""
    layers, states = parts
    each = -(-len(lab.made.places) // 40)  # part files of a layer
    labels = 1 if "label_" in sql else 0
    # A file without rows stands for what is not asked for, so that it costs one file and no more.
    assert sum(files_read(lab, sql)) <= layers * each + states + labels + 2


def test_one_column_is_read(lab):
    plan = lab.db.execute("EXPLAIN FROM vectors_of('latest', 1, 'q')").fetchall()[0][1]
    assert re.search(r"\bq\b", plan)
    assert not re.search(r"hidden_(in|out)|mlp_|attn_out", plan)


def moods(made: Made, selector: str, label: str) -> np.ndarray:
    return np.array([value == label for value in made.label("mood", selector)])


@pytest.mark.parametrize("selector", SELECTORS)
def test_direction_between_labels(lab, selector):
    rows = lab.rows(f"FROM label_direction($set, 'mood', 'joy', 'calm', selector := '{selector}')")
    assert [(r["site"], r["layer"]) for r in rows] == kinds(lab.made, selector)
    joy, calm = moods(lab.made, selector, "joy"), moods(lab.made, selector, "calm")
    for r in rows:
        vectors = lab.made.matrix(r["site"], r["layer"], selector).astype(float)
        expected = vectors[joy].mean(0) - vectors[calm].mean(0)
        assert r["vector"] == pytest.approx(expected.tolist())
        same(r["norm"], np.linalg.norm(expected))
        assert (r["n_positive"], r["n_negative"]) == (joy.sum(), calm.sum())


@pytest.mark.parametrize(
    ("column", "a", "b"),
    [("layer", "1", "2"), ("layer", "1.0", "2"), ("run", "'3'", "0"), ("order", "true", "false"),
     ('a "quoted" name', "date '2026-01-01'", "'2026-01-02'")],
)  # fmt: skip
def test_labels_of_any_type(lab, column, a, b):
    values = lab.made.label(column)
    value_a, value_b = {"layer": (1, 2), "run": (3, 0), "order": (True, False)}.get(
        column, (date(2026, 1, 1), date(2026, 1, 2))
    )
    vectors = lab.made.matrix("q", 2).astype(float)
    chosen = [
        np.array([value is not None and value == one for value in values])
        for one in (value_a, value_b)
    ]
    sql = f"""FROM label_direction($set, '{column}', {a}, {b}) WHERE site = 'q' AND layer = 2"""
    (found,) = lab.rows(sql)
    assert found["vector"] == pytest.approx(
        (vectors[chosen[0]].mean(0) - vectors[chosen[1]].mean(0)).tolist()
    )


def test_no_direction_without_rows(lab):
    assert lab.rows("FROM label_direction($set, 'mood', 'joy', 'no such mood')") == []
    assert lab.rows("FROM label_direction($talk, 'mood', 'joy', 'fear')") == []


def test_what_is_done_with_a_direction_works_with_either(lab):
    """`vector` is the column's name in both, so one query does for references and for labels."""
    for source, site in (("direction($talk, 'joy', 'fear')", "attn_out"),
                         ("label_direction($set, 'mood', 'joy', 'fear')", "hidden_out")):  # fmt: skip
        sql = f"SELECT vector, norm FROM {source} WHERE site = '{site}' AND layer = 1"
        (row,) = lab.rows(sql)
        lengths = lab.rows(
            f"SELECT project(d.vector, d.vector) AS x, cosine(d.vector, d.vector) AS y FROM ({sql}) AS d"
        )
        same(lengths[0]["x"], row["norm"])
        same(lengths[0]["y"], 1.0)
    sql = """SELECT v.prompt_id, project(v.vector, d.vector) AS x FROM vectors_of($set, 2, 'hidden_out') AS v
             JOIN label_direction($set, 'mood', 'joy', 'calm') AS d ON d.layer = 2 AND d.site = 'hidden_out'"""
    along = {r["prompt_id"]: r["x"] for r in lab.rows(sql)}
    mood = dict(zip(lab.made.prompts, lab.made.label("mood"), strict=True))
    joy, calm = ([along[n] for n in mood if mood[n] == label] for label in ("joy", "calm"))
    assert np.mean(joy) > np.mean(calm)


@pytest.mark.parametrize("selector", SELECTORS)
def test_nearest_prompts(lab, selector):
    prompt, layer = 7, 2
    vectors = lab.made.matrix("hidden_out", layer, selector)
    owners = lab.made.label("id", selector)
    best = {}
    for i, j in (
        (i, j) for i, one in enumerate(owners) if one == "row 7" for j in range(len(owners))
    ):
        if owners[j] != "row 7":
            best[owners[j]] = max(best.get(owners[j], -1), cosine(vectors[i], vectors[j]))
    expected = sorted(best, key=lambda row: -best[row])[:4]
    sql = f"FROM nearest_prompts($set, {prompt}, {layer}, 'hidden_out', selector := '{selector}', k := 4)"
    rows = lab.rows(sql)
    assert [r["row_id"] for r in rows] == expected
    for r in rows:
        same(r["cosine"], best[r["row_id"]])
        assert (
            r["prompt_text"] == f"prompt {r['prompt_id']}" == r["row_id"].replace("row", "prompt")
        )
        if selector != "mean":
            assert (r["prompt_id"], r["position"]) in lab.made.selectors[selector]
    assert (
        len(lab.rows(f"FROM nearest_prompts($set, 7, 2, 'hidden_out', selector := '{selector}')"))
        == 10
    )
    assert lab.rows("FROM nearest_prompts($set, 3, 2, 'hidden_out')") == []  # it was skipped


def test_norms_of_labels(lab):
    rows = lab.rows("FROM label_norms($set, 'mood')")
    assert len(rows) == 3 * 9
    for r in rows:
        chosen = lab.made.matrix(r["site"], r["layer"])[moods(lab.made, "last", r["label"])]
        norms = np.linalg.norm(chosen.astype(float), axis=1)
        assert r["n"] == len(norms)
        same(r["norm"], norms.mean())
        same(r["norm_std"], norms.std())


@pytest.mark.parametrize("selector", ["last", "message_ends"])
def test_similarity_is_over_all_pairs(lab, selector):
    labels = lab.made.label("mood", selector)
    rows = lab.rows(f"FROM label_similarity($set, 'mood', selector := '{selector}')")
    assert len(rows) == 9
    for r in rows:
        chosen = [n for n, label in enumerate(labels) if label is not None]
        x = lab.made.matrix(r["site"], r["layer"], selector).astype(float)[chosen]
        mood = [labels[n] for n in chosen]
        pairs = [(i, j, mood[i] == mood[j]) for i, j in combinations(range(len(x)), 2)]
        centred = x - x.mean(0)
        square = (centred**2).sum(1).mean()
        for alike, name in ((True, "within"), (False, "between")):
            some = [(i, j) for i, j, same_label in pairs if same_label == alike]
            same(r[name], np.mean([cosine(x[i], x[j]) for i, j in some]))
            products = np.mean([centred[i] @ centred[j] for i, j in some]) / square
            assert r[f"centered_{name}"] == pytest.approx(products, abs=1e-9)
        assert (r["labels"], r["n"]) == (3, len(x))
    out = [r["centered_within"] for r in rows if r["site"] == "hidden_out"]
    assert out == sorted(out)  # as it was made: the farther up, the more the mood shows


def test_similarity_of_labels_that_say_nothing(lab):
    one = lab.rows("FROM label_similarity($set, 'f')")
    assert one == []
    (each,) = lab.rows("FROM label_similarity($set, 'id') WHERE site = 'q' AND layer = 0")
    assert (each["labels"], each["n"], each["within"], each["centered_within"]) == (
        59,
        59,
        None,
        None,
    )
    (flat,) = lab.rows("FROM label_similarity($other, 'run') WHERE site = 'q' AND layer = 0")
    assert (flat["labels"], flat["n"]) == (4, 24)


def test_overview(lab):
    (row,) = lab.rows("FROM dataset_overview($set)")
    lengths = sorted(lab.made.lengths.values())
    assert row == {
        "run_id": lab.made.run_id, "source": "some.csv", "prompts": 59, "skipped": 1,
        "label_columns": lab.made.labels.column_names, "group_column": "filename", "groups": 5,
        "selectors": ["last", "message_ends", "name", "mean"], "tokens": sum(lengths), "tokens_min": lengths[0],
        "tokens_median": float(np.median(lengths)), "tokens_max": lengths[-1],
        "alone": sum(n % 20 == 0 for n in lab.made.prompts), "batch_error": 2e-7, "batch_error_layer": 1,
    }  # fmt: skip
    assert lab.rows("FROM dataset_overview($talk)") == []
    assert len(lab.rows("FROM dataset_overview([$set, $other, $talk])")) == 2


@pytest.mark.parametrize(
    "analysis",
    ["run_overview()", "run_prompts($set)", "run_steps($set)", "run_sites($set)", "run_files($set)",
     "run_warnings($set)", "run_pairs()", "run_sizes()", "group_states($set, 'mean')", "tensor_of($set, 'q')"],
)  # fmt: skip
def test_analyses_of_runs_take_a_dataset(lab, analysis):
    assert lab.rows(f"FROM {analysis}")


@pytest.mark.parametrize("analysis", ["intra_run($set)", "reference_separation($set)", "leaning($set)", "convergence($set)",
                                      "inter_run_among([$set, $other])", "turn_shift($set)", "conversation_shift($set)"])  # fmt: skip
def test_analyses_of_conversations_have_nothing_to_say_of_a_dataset(lab, analysis):
    assert lab.rows(f"FROM {analysis}") == []


def test_in_a_lake_below_a_folder_like_a_partition(tmp_path):
    lake = Lake(tmp_path / "run=7" / "layer=3" / "lab")
    made = make_dataset(lake)
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        rows = db.execute("FROM vectors_of('latest', 1, 'q')").fetchall()
        np.testing.assert_array_equal(np.array([r[3] for r in rows], "f4"), made.matrix("q", 1))
        means = db.execute(
            "FROM vectors_of('latest', 1, 'hidden_out', selector := 'mean')"
        ).fetchall()
        assert len(means) == 59
        layer = db.execute(
            "SELECT layer, run FROM labels_of('latest') ORDER BY prompt_id"
        ).fetchall()
        assert layer == list(
            zip(made.labels["layer"].to_pylist(), made.labels["run"].to_pylist(), strict=True)
        )
