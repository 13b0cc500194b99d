"""Groups of states against numpy: the centroid, the spread, the matrix of pairs, the effective rank."""

import numpy as np
import pytest
from reference import cosine, same
from test_compare_states import lab  # noqa: F401  the same two runs

from warehouse.vocabulary import STATE_SITES

GROUPS = {
    "['$one', '$two'], 'final'": lambda run, state, index, label: state == "final" and run != "narrow",
    "$one, 'snapshot'": lambda run, state, index, label: run == "one" and state == "snapshot",
    "['$two', '$one'], 'snapshot', index := 3": lambda run, state, index, label: (
        run != "narrow" and (state, index) == ("snapshot", 3)
    ),
    "$two, 'reference'": lambda run, state, index, label: (run, state) == ("two", "reference"),
    "$two, 'example', label := 'fear'": lambda run, state, index, label: (run, state, label) == ("two", "example", "fear"),
}  # fmt: skip
every_group = pytest.mark.parametrize("call", GROUPS)


def spelled(lab, call):  # noqa: F811
    for name, run_id in lab.ids.items():
        call = call.replace(f"'${name}'", f"'{run_id}'").replace(f"${name}", f"'{run_id}'")
    return call


def members(lab, call, site, layer):  # noqa: F811
    """(run, index, label) to vector of the group."""
    names = {run_id: name for name, run_id in lab.ids.items()}
    return {
        (run, index, label): vector for (run, state, index, label, s, n), vector in lab.states.items()
        if (s, n) == (site, layer) and GROUPS[call](names[run], state, index, label)
    }  # fmt: skip


@every_group
def test_how_alike_they_are(lab, call):  # noqa: F811
    rows = lab.rows(f"FROM group_states({spelled(lab, call)})")
    assert [(r["site"], r["layer"]) for r in rows] == sorted(
        (s, n) for s in STATE_SITES for n in range(2)
    )
    for r in rows:
        x = np.array(list(members(lab, call, r["site"], r["layer"]).values()))
        centre = x.mean(0)
        assert (r["n"], r["width"]) == x.shape
        cosines = [cosine(one, centre) for one in x]
        same(r["cosine_mean"], np.mean(cosines))
        same(r["cosine_min"], min(cosines))
        same(
            r["pair_cosine"], np.mean([cosine(x[i], x[j]) for i in range(len(x)) for j in range(i)])
        )
        spread = np.sqrt(((x - centre) ** 2).sum(1).mean())
        same(r["spread"], spread)
        same(r["relative_spread"], spread / np.linalg.norm(centre))
        values = np.linalg.eigvalsh(np.cov(x.T))
        same(r["effective_rank"], values.sum() ** 2 / (values**2).sum())


@every_group
def test_each_against_the_centre(lab, call):  # noqa: F811
    rows = lab.rows(f"FROM group_members({spelled(lab, call)})")
    for r in rows:
        found = members(lab, call, r["site"], r["layer"])
        one, centre = (
            found[r["run_id"], r["state_index"], r["label"]],
            np.mean(list(found.values()), axis=0),
        )
        assert r["n"] == len(found)
        same(r["cosine"], cosine(one, centre))
        same(r["distance"], np.linalg.norm(one - centre))
        same(r["relative_distance"], np.linalg.norm(one - centre) / np.linalg.norm(centre))
    assert len(rows) == 8 * len(found)


@every_group
def test_every_two(lab, call):  # noqa: F811
    rows = lab.rows(f"FROM state_matrix({spelled(lab, call)})")
    for r in rows:
        found = members(lab, call, r["site"], r["layer"])
        a, b = (found[tuple(r[f"{k}_{side}"] for k in ("run", "index", "label"))] for side in "ab")
        centre = np.mean(list(found.values()), axis=0)
        assert r["n"] == len(found)
        same(r["cosine"], cosine(a, b))
        same(r["centered_cosine"], cosine(a - centre, b - centre))
        same(r["distance"], np.linalg.norm(a - b))
    assert len(rows) == 8 * len(found) ** 2


def test_states_of_different_width_are_groups_of_their_own(lab):  # noqa: F811
    every = spelled(lab, "['$one', '$two', '$narrow'], 'initial'")
    rows = lab.rows(f"FROM group_states({every}) WHERE site = 'attn_out' AND layer = 0")
    assert [(r["width"], r["n"]) for r in rows] == [(12, 1), (128, 2)]
    alone, two = rows
    assert (alone["spread"], alone["pair_cosine"], alone["effective_rank"]) == (0, None, None)
    assert two["effective_rank"] == pytest.approx(1)
    assert len(lab.rows(f"FROM state_matrix({every})")) == 8 * (1 + 4)


def test_filters_reach_through(lab):  # noqa: F811
    whole = lab.rows(
        "SELECT * FROM group_states($one, 'snapshot') WHERE layer = 1 AND site = 'hidden_out'"
    )
    assert len(whole) == 1
    assert lab.rows("FROM group_states($one, 'snapshot', index := 99)") == []
    assert lab.rows("FROM group_states('no such run', 'snapshot')") == []
    assert lab.rows("FROM group_states($one, 'snapshot', prompt := 1)") == []
