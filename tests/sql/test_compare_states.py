"""Any two states, and groups of them, against numpy."""

import numpy as np
import pytest
from labs import Lab
from reference import cosine, jaccard, mae, same
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.vocabulary import STATE_SITES


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two runs that compare and one of another width; their states as (state, index, label) to (site, layer) to vector."""
    lake = Lake(tmp_path_factory.mktemp("pairs") / "lab")
    shape = Shape(width=128, layers=2, examples=(1, 2))
    ids = {
        "one": make_run(lake, "one", shape, seed=1), "two": make_run(lake, "two", shape, seed=2),
        "narrow": make_run(lake, "narrow", Shape(width=12, layers=2), seed=3),
    }  # fmt: skip
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        yield States(db, ids)


class States(Lab):
    def __init__(self, db, ids):
        super().__init__(db, ids)
        self.states: dict = {}
        for r in self.rows("SELECT * FROM states"):
            key = r["run_id"], r["state"], r["state_index"], r["label"], r["site"], r["layer"]
            self.states[key] = np.array(r["vector"], float)

    def compared(self, call: str) -> list[tuple]:
        """The pairs of a call, each checked against numpy in every site and layer."""
        found = {}
        for r in self.rows(f"FROM compare_states({call})"):
            sides = [tuple(r[f"{k}_{s}"] for k in ("run", "state", "index", "label")) for s in "ab"]
            a, b = (self.states[*side, r["site"], r["layer"]] for side in sides)
            same(r["cosine"], cosine(a, b))
            same(r["mae"], mae(a, b))
            same(r["jaccard"], jaccard(a, b))
            same(r["std"], np.std(a - b))
            found.setdefault(tuple(side[1:] for side in sides), set()).add((r["site"], r["layer"]))
        assert all(
            places == {(s, n) for s in STATE_SITES for n in range(2)} for places in found.values()
        )
        return sorted(found, key=repr)


def snapshot(k):
    return "snapshot", k, None


def test_two_messages_of_a_run(lab):
    found = lab.compared("$one, 'snapshot', $one, 'snapshot', index_a := 1, index_b := 3")
    assert found == [(snapshot(1), snapshot(3))]
    assert lab.compared("$one, 'snapshot', $one, 'snapshot', index_a := 1, index_b := 1") == []


def test_one_message_with_all_others(lab):
    found = lab.compared("$one, 'snapshot', $one, 'snapshot', index_a := 2")
    assert found == [(snapshot(2), snapshot(k)) for k in range(6) if k != 2]
    assert len(lab.compared("$one, 'snapshot', $two, 'snapshot', index_a := 2")) == 6


def test_the_same_message_of_two_runs(lab):
    assert lab.compared("$one, 'snapshot', $two, 'snapshot'") == [
        (snapshot(k), snapshot(k)) for k in range(6)
    ]
    assert lab.compared("$one, 'snapshot', $one, 'snapshot'") == []


def test_states_of_two_kinds(lab):
    ends = (("initial", 0, None), ("final", 3, None))
    assert lab.compared("$one, 'initial', $one, 'final'") == [ends]
    intra = lab.rows("FROM intra_run($one)")
    again = lab.rows("FROM compare_states($one, 'initial', 'latest', 'final', prompt_a := 1)")
    assert again == []
    found = lab.rows(
        "SELECT * FROM compare_states($one, 'initial', $one, 'final') ORDER BY site, layer"
    )
    for r, plain in zip(found, intra, strict=True):
        assert all(r[k] == pytest.approx(plain[k], rel=1e-6) for k in ("cosine", "mae", "jaccard"))
    assert len(lab.compared("$one, 'snapshot', $one, 'reference'")) == 6 * 3
    assert (
        len(lab.compared("$one, 'snapshot', $two, 'reference', index_a := 0, label_b := 'joy'"))
        == 1
    )


def test_references_pair_by_label(lab):
    found = lab.compared("$one, 'reference', $two, 'reference'")
    assert found == [(("reference", i, x),) * 2 for i, x in enumerate(("joy", "fear", "calm"))]
    found = lab.compared("$one, 'reference', $one, 'reference', label_a := 'joy'")
    assert [b[2] for _, b in found] == ["fear", "calm"]
    assert lab.compared("$one, 'reference', $one, 'example'") == [
        (("reference", 1, "fear"), ("example", k, "fear")) for k in (1, 2)
    ]


def test_runs_that_do_not_compare(lab):
    assert lab.rows("FROM compare_states($one, 'final', $narrow, 'final')") == []
    assert lab.rows("FROM compare_states('no such run', 'final', $one, 'final')") == []


def test_equal_states_differ_by_nothing(lab):
    lab.db.execute(
        "CREATE TEMP TABLE twice AS SELECT * FROM states UNION ALL SELECT * REPLACE (prompt_id + 1 AS prompt_id) FROM states"
    )
    lab.db.execute("CREATE TEMP MACRO states_of(run_id) AS TABLE FROM twice")
    try:
        rows = lab.rows("FROM compare_states($one, 'final', $one, 'final', prompt_a := 0)")
    finally:
        lab.db.execute("DROP MACRO TABLE temp.states_of")
    assert len(rows) == 8
    assert {(r["mae"], r["jaccard"], r["std"], round(r["cosine"], 12)) for r in rows} == {
        (0, 1, 0, 1)
    }
