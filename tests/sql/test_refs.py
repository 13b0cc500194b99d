"""States named by refs against numpy: pairs, groups, aligned tokens, CKA."""

import duckdb
import numpy as np
import pytest
from labs import Lab
from reference import cka, cosine, jaccard, mae, same, unbiased_cka
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.vocabulary import STATE_SITES

SHAPE = Shape(width=128, layers=3, examples=(1, 2))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two runs that compare, one of another width, and a dataset."""
    lake = Lake(tmp_path_factory.mktemp("refs") / "lab")
    ids = {
        "one": make_run(lake, "one", SHAPE, seed=1),
        "two": make_run(lake, "two", SHAPE, seed=2),
        "narrow": make_run(lake, "narrow", Shape(width=12, layers=3), seed=3),
    }
    made = make_dataset(lake, "set")
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        refs = Refs(db, ids | {"set": made.run_id})
        refs.made = made
        yield refs


class Refs(Lab):
    """Refs begin with the runs' short names."""

    def ask(self, macro: str, refs: list[str], more: str = "", what: str = "*") -> list[dict]:
        ids = [self.ids[ref.partition(":")[0]] + ref[len(ref.partition(":")[0]) :] for ref in refs]
        cursor = self.db.execute(f"SELECT {what} FROM {macro}($refs{more})", {"refs": ids})
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def vectors(self, refs: list[str]) -> dict:
        """(place, site, layer) to vector, from the view of states."""
        rows = self.rows("SELECT * FROM states")
        found = {}
        for place, ref in enumerate(refs):
            run, *rest = ref.split(":")
            want = {(): ("initial", 0, None), ("0", "final"): ("final", 3, None)}.get(tuple(rest))
            if rest and rest[0] == "reference":
                want = ("reference", None, rest[1])
            elif len(rest) == 3:
                want = (rest[1], int(rest[2]), None)
            for r in rows:
                index = None if want[0] == "reference" else r["state_index"]
                if (r["run_id"], r["state"], index, r["label"]) == (self.ids[run], *want):
                    found[place, r["site"], r["layer"]] = np.array(r["vector"], float)
        return found


FIVE = ["one", "one:0:final", "two:0:snapshot:2", "two:reference:joy", "two"]


def test_every_kind_of_ref_gives_its_vectors(lab):
    rows = lab.ask("states_by_ref", FIVE)
    expected = lab.vectors(FIVE)
    assert len(rows) == len(expected) == 5 * 4 * 3
    for r in rows:
        assert np.array_equal(r["vector"], expected[r["place"], r["site"], r["layer"]])


def test_a_token_and_a_row_come_from_the_activations(lab):
    rows = lab.ask("states_by_ref", ["one:0:token:5"])
    tensors = lab.rows("FROM tensor_of($one, 'attn_out') WHERE position = 5")
    wanted = {r["layer"]: r["vector"] for r in tensors}
    found = {r["layer"]: r["vector"] for r in rows if r["site"] == "attn_out"}
    assert found == wanted and {r["position"] for r in rows} == {5}
    made = lab.made
    rows = lab.ask("states_by_ref", ["set:row:row 7", "set:row@name:row 7", "set:row@mean:row 7"])
    for place, selector in enumerate(("last", "name", "mean")):
        kept = made.prompts if selector == "mean" else [p for p, _ in made.selectors[selector]]
        for layer in range(3):
            (own,) = [
                r["vector"] for r in rows
                if (r["place"], r["site"], r["layer"]) == (place, "hidden_out", layer)
            ]  # fmt: skip
            same(list(own), made.matrix("hidden_out", layer, selector)[kept.index(7)].tolist())


@pytest.mark.parametrize("ref", ["one:9", "one:0:snapshot:77", "one:reference:none", "set:row:no",
                                 "one:0:token:999", "one:99999999999999", "one:example:999"])  # fmt: skip
def test_what_is_not_there_has_no_rows(lab, ref):
    assert lab.ask("states_by_ref", [ref]) == []


@pytest.mark.parametrize(
    "ref", ["one:final", "one:0:before", "one:0:snapshot:x", "one:row", "one::"]
)
def test_what_names_no_state_is_told(lab, ref):
    with pytest.raises(duckdb.Error, match="names no state of a run"):
        lab.ask("states_by_ref", [ref])


def test_latest_of_a_scenario_may_stand_in_a_ref(lab):
    (row,) = lab.rows("SELECT run_id, kind, label FROM _refs_of(['latest:one:reference:a:b'])")
    assert row == {"run_id": lab.ids["one"], "kind": "reference", "label": "a:b"}


def test_every_two(lab):
    rows, x = lab.ask("pairs_by_ref", FIVE), lab.vectors(FIVE)
    assert len(rows) == 10 * 4 * 3
    for r in rows:
        a, b = (x[r[f"place_{side}"], r["site"], r["layer"]] for side in "ab")
        same(r["cosine"], cosine(a, b))
        same(r["mae"], mae(a, b))
        same(r["jaccard"], jaccard(a, b))
        same(r["std"], np.std(a - b))
    some = lab.ask("pairs_by_ref", FIVE, ", site := 'hidden_out', layer := 1")
    assert some == [r for r in rows if (r["site"], r["layer"]) == ("hidden_out", 1)]
    assert lab.ask("pairs_by_ref", ["one", "narrow"]) == []


def test_the_group(lab):
    x = lab.vectors(FIVE)
    for r in lab.ask("members_by_ref", FIVE, ", 'attn_out'"):
        group = np.array([x[place, "attn_out", r["layer"]] for place in range(5)])
        one, centre = group[r["place"]], group.mean(0)
        same(r["cosine"], cosine(one, centre))
        same(r["distance"], np.linalg.norm(one - centre))
        same(r["relative_distance"], np.linalg.norm(one - centre) / np.linalg.norm(centre))
    rows = lab.ask("spread_by_ref", FIVE)
    assert [(r["site"], r["layer"]) for r in rows] == sorted(
        (s, n) for s in STATE_SITES for n in range(3)
    )
    for r in rows:
        group = np.array([x[place, r["site"], r["layer"]] for place in range(5)])
        pairs = [cosine(group[i], group[j]) for i in range(5) for j in range(i)]
        values = np.linalg.eigvalsh(np.cov(group.T))
        same(r["pair_cosine"], np.mean(pairs))
        same(r["spread"], 1 - np.mean(pairs))
        same(r["effective_rank"], values.sum() ** 2 / (values**2).sum())


def test_how_streams_settle(lab):
    x = lab.vectors(FIVE)
    for r in lab.ask("convergence_by_ref", FIVE):
        before, after = (x[r["place"], site, r["layer"]] for site in ("hidden_in", "hidden_out"))
        same(r["cosine_adjacent"], cosine(before, after))
        same(r["relative_step"], np.linalg.norm(after - before) / np.linalg.norm(before))
        same(r["cosine_last"], cosine(after, x[r["place"], "hidden_out", 2]))


TOKENS = {
    # position, token, message: texts that begin alike, differ in one message and end alike
    "one": [("s", 0), ("a", 0), ("u", 1), ("x", 1), ("y", 1), ("e", 1), ("g", None)],
    "two": [("s", 0), ("a", 0), ("b", 0), ("u", 1), ("z", 1), ("e", 1), ("g", None)],
}


@pytest.fixture
def texts(lab):
    """Tokens of TOKENS in place of the runs' own."""
    lab.db.execute(
        "CREATE TEMP TABLE texts (run_id VARCHAR, prompt_id INTEGER, position INTEGER, token VARCHAR, message_index INTEGER)"
    )
    lab.db.execute(
        "CREATE TEMP MACRO tokens_by_ref(refs) AS TABLE SELECT a.place, t.* FROM texts AS t "
        "JOIN _refs_of(refs) AS a ON a.run_id = t.run_id"
    )
    for name, tokens in TOKENS.items():
        for position, (token, message) in enumerate(tokens):
            lab.db.execute("INSERT INTO texts VALUES (?, 0, ?, ?, ?)", [lab.ids[name], position, token, message])  # fmt: skip
    yield
    lab.db.execute("DROP MACRO TABLE temp.tokens_by_ref")
    lab.db.execute("DROP TABLE temp.texts")


@pytest.mark.parametrize(("alignment", "expected"), [
    ("prefix", [(0, 0), (1, 1)]),
    ("message", [(0, 0), (1, 1), (2, 3), (5, 5), (6, 6)]),
    ("last", [(6, 6)]),
])  # fmt: skip
def test_tokens_are_aligned_as_is_said(lab, texts, alignment, expected):
    rows = lab.ask("tokens_aligned", ["one", "two"], f", '{alignment}'")
    assert [(r["position_a"], r["position_b"]) for r in rows] == expected
    assert [r["pair"] for r in rows] == list(range(len(expected)))
    assert {r["pairs"] for r in rows} == {len(expected)}
    compared = lab.ask("tokens_by_pair", ["one", "two"], f", '{alignment}', 'attn_out'")
    assert len(compared) == 3 * len(expected)
    x = {
        name: {(r["layer"], r["position"]): np.array(r["vector"], float)
               for r in lab.rows(f"FROM tensor_of(${name}, 'attn_out')")}
        for name in TOKENS
    }  # fmt: skip
    for r in compared:
        a, b = x["one"][r["layer"], r["position_a"]], x["two"][r["layer"], r["position_b"]]
        same(r["cosine"], cosine(a, b))
        same(r["mae"], mae(a, b))


def test_another_alignment_is_told(lab):
    with pytest.raises(duckdb.Error, match="there are prefix, message and last"):
        lab.ask("tokens_aligned", ["one", "two"], ", 'position'")


def test_a_state_has_seen_its_own_tokens_only(lab):
    rows = lab.ask("tokens_by_ref", ["one", "one:0:final", "one:0:snapshot:1", "one:0:token:3", "one:reference:joy"])  # fmt: skip
    last = {place: max(r["position"] for r in rows if r["place"] == place) for place in range(4)}
    (end,) = lab.rows(
        "SELECT last_position AS p FROM messages WHERE run_id = $one AND message_index = 1"
    )
    assert last == {0: 11, 1: 14, 2: end["p"], 3: 3}
    assert {r["place"] for r in rows} == {0, 1, 2, 3}


def test_cka(lab):
    refs = ["one", "two", "narrow"]  # widths may differ
    rows = lab.ask("cka_by_ref", refs, ", 'prefix', 'hidden_out'")
    assert len(rows) == 3 * 3 * 3
    x = {
        (place, layer): np.array([
            r["vector"] for r in lab.rows(
                f"FROM tensor_of(${name}, 'hidden_out') WHERE layer = {layer} AND position < 12 ORDER BY position")
        ], float)
        for place, name in enumerate(refs) for layer in range(3)
    }  # fmt: skip
    for r in rows:
        a, b = x[r["place_a"], r["layer_a"]], x[r["place_b"], r["layer_b"]]
        assert r["positions"] == 12
        assert r["cka"] == pytest.approx(unbiased_cka(a, b), abs=1e-6)
        assert r["cka_biased"] == pytest.approx(cka(a, b), abs=1e-6)
    assert lab.ask("cka_by_ref", refs, ", 'last', 'hidden_out'") == []
    one = lab.ask("cka_by_ref", refs, ", 'prefix', 'hidden_out', layer := 1")
    assert [r["cka"] for r in one] == [
        pytest.approx(r["cka"]) for r in rows if r["layer_a"] == r["layer_b"] == 1
    ]
