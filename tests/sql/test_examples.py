"""References of several examples: means, intervals and separation against numpy."""

import hashlib

import numpy as np
import pytest
from labs import Lab
from reference import cosine, same
from synthetic import Shape, make_run

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.vocabulary import STATE_SITES

RESAMPLES = 50
SHAPE = Shape(width=24, layers=2, examples=(1, 2, 5))  # joy, fear, calm


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One run with 1, 2 and 5 examples a label and one with 1 each, as SQL and as numpy."""
    lake = Lake(tmp_path_factory.mktemp("examples") / "lab")
    ids = {
        "several": make_run(lake, "several", SHAPE, seed=1),
        "single": make_run(lake, "single", Shape(), seed=2),
    }
    catalog.sync(lake)
    with catalog.connect(lake) as db:
        yield Examples(db, ids)


class Examples(Lab):
    def __init__(self, db, ids):
        super().__init__(db, ids)
        self.examples: dict = {}
        self.references: dict = {}
        self.snapshots: dict = {}
        for r in self.rows("SELECT * FROM states_of($several) ORDER BY state_index"):
            vector = np.array(r["vector"], float)
            if r["state"] == "snapshot":
                self.snapshots[r["state_index"], r["site"], r["layer"]] = vector
            elif r["state"] == "example":
                self.examples.setdefault((r["label"], r["site"], r["layer"]), []).append(vector)
            elif r["state"] == "reference":
                self.references[r["label"], r["site"], r["layer"]] = vector
        for key, vector in self.references.items():
            self.examples.setdefault(key, [vector])


LABELS = ("calm", "fear", "joy")
COUNT = {"joy": 1, "fear": 2, "calm": 5}


def resampled(lab, site, layer, seed=0):
    """References of every resample, (resamples, labels, width): the draws that the comment of the SQL promises."""
    found = []
    for resample in range(RESAMPLES):
        means = []
        for label in LABELS:
            n = COUNT[label]
            texts = (f"{seed}/{label}/{resample}/{draw}" for draw in range(n))
            drawn = [int(hashlib.md5(text.encode()).hexdigest()[:8], 16) % n for text in texts]
            means.append(np.mean([lab.examples[label, site, layer][i] for i in drawn], axis=0))
        found.append(means)
    return np.array(found)


def around(estimate, values):
    low, high = np.quantile(values, [0.025, 0.975])
    return estimate + low - np.mean(values), estimate + high - np.mean(values)


def test_a_reference_is_the_mean_of_its_examples(lab):
    for (label, site, layer), vector in lab.references.items():
        assert len(lab.examples[label, site, layer]) == COUNT[label]
        np.testing.assert_allclose(
            np.mean(lab.examples[label, site, layer], axis=0), vector, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("call", [
    "snapshot_reference({})", "snapshot_cosine({})", "reference_shift({})", "role_average({})", "reference_summary({})",
    "memory_fade({})", "damping({})", "snapshot_interval({})", "shift_interval({})",
])  # fmt: skip
def test_every_number_says_how_many_examples_it_has(lab, call):
    rows = lab.rows(f"FROM {call.format('$several')}")
    assert {r["label"] for r in rows} <= {*LABELS, None}
    assert all(
        r["n"] == COUNT.get(r["label"], 1) for r in rows
    )  # over all labels: of the one with the fewest
    assert {r["n"] for r in lab.rows(f"FROM {call.format('$single')}")} == {1}


def test_centring_averages_over_labels_not_examples(lab):
    for r in lab.rows("FROM snapshot_reference($several)"):
        place = r["site"], r["layer"]
        mean = np.mean([lab.references[label, *place] for label in LABELS], axis=0)
        vector = lab.snapshots[r["message_index"], *place]
        same(r["centered_cosine"], cosine(vector - mean, lab.references[r["label"], *place] - mean))


@pytest.mark.parametrize("seed", [0, 7])
def test_intervals_of_snapshots(lab, seed):
    rows = lab.rows(f"FROM snapshot_interval($several, resamples := {RESAMPLES}, seed := {seed})")
    assert len(rows) == 6 * 3 * 4 * 2
    for r in rows:
        if r["n"] == 1:
            assert [
                r[k] for k in ("cosine_low", "cosine_high", "centered_low", "centered_high")
            ] == [None] * 4
            continue
        place = r["site"], r["layer"]
        vector, means = lab.snapshots[r["message_index"], *place], resampled(lab, *place, seed)
        mine = means[:, LABELS.index(r["label"])]
        centre = means.mean(1)
        raw = [cosine(vector, one) for one in mine]
        centred = [cosine(vector - m, one - m) for one, m in zip(mine, centre, strict=True)]
        for name, estimate, values in (
            ("cosine", "cosine", raw),
            ("centered", "centered_cosine", centred),
        ):
            low, high = around(r[estimate], values)
            same(r[f"{name}_low"], low)
            same(r[f"{name}_high"], high)
            assert r[f"{name}_low"] <= r[estimate] + 1e-12
    one = lab.rows(
        f"FROM snapshot_interval($several, site := 'attn_out', resamples := {RESAMPLES}, seed := {seed})"
    )
    for r, whole in zip(one, (r for r in rows if r["site"] == "attn_out"), strict=True):
        for name in (
            "label",
            "layer",
            "cosine",
            "cosine_low",
            "cosine_high",
            "centered_low",
            "centered_high",
        ):
            assert r[name] == whole[name] or r[name] == pytest.approx(
                whole[name], abs=1e-14
            )  # sums run in any order
    assert lab.rows("FROM _resampled_cosines($single, 10, 0, NULL)") == []


def shifts(lab, site):
    """Shift of every message and label for each resample, (resamples, messages, labels)."""
    table = []
    for layer in range(SHAPE.layers):
        means = resampled(lab, site, layer)
        vectors = np.array([lab.snapshots[k, site, layer] for k in range(6)])
        table.append(
            np.einsum("kd,rld->rkl", vectors, means)
            / np.linalg.norm(vectors, axis=1)[None, :, None] / np.linalg.norm(means, axis=2)[:, None]
        )  # fmt: skip
    table = np.mean(table, axis=0)
    return (
        table
        - table.mean(1, keepdims=True)
        - table.mean(2, keepdims=True)
        + table.mean((1, 2), keepdims=True)
    )


def test_intervals_of_shifts(lab):
    rows = lab.rows(f"FROM shift_interval($several, resamples := {RESAMPLES})")
    assert len(rows) == 4 * 6 * 3
    found = {site: shifts(lab, site) for site in STATE_SITES}
    plain = {
        (r["site"], r["message_index"], r["label"]): r["shift"]
        for r in lab.rows("FROM reference_shift($several)")
    }
    for r in rows:
        same(r["shift"], plain[r["site"], r["message_index"], r["label"]])
        values = found[r["site"]][:, r["message_index"], LABELS.index(r["label"])]
        low, high = around(r["shift"], values) if r["n"] > 1 else (None, None)
        same(r["shift_low"], low)
        same(r["shift_high"], high)


def test_leaning(lab):
    plain = {}
    for r in lab.rows("FROM reference_shift($several)"):
        plain.setdefault((r["site"], r["message_index"]), {})[r["label"]] = r["shift"]
    rows = lab.rows(f"FROM leaning($several, resamples := {RESAMPLES})")
    assert len(rows) == 4 * 6
    for r in rows:
        first, second, _ = sorted(
            LABELS, key=lambda label: -plain[r["site"], r["message_index"]][label]
        )
        assert (r["label"], r["runner_up"]) == (first, second)
        assert r["n"] == min(COUNT[first], COUNT[second])
        same(
            r["margin"],
            plain[r["site"], r["message_index"]][first]
            - plain[r["site"], r["message_index"]][second],
        )
        values = shifts(lab, r["site"])[:, r["message_index"]]
        margins = values[:, LABELS.index(first)] - values[:, LABELS.index(second)]
        low, high = around(r["margin"], margins)
        same(r["margin_low"], low)
        same(r["margin_high"], high)
        same(r["agrees"], np.mean(values.argmax(1) == LABELS.index(first)))
    for r in lab.rows("FROM leaning($single)"):
        assert r["margin"] >= 0
        assert (r["margin_low"], r["margin_high"], r["agrees"], r["n"]) == (None, None, None, 1)


@pytest.mark.parametrize(("positive", "negative"), [("calm", "fear"), ("joy", "calm")])
def test_how_far_a_direction_turns(lab, positive, negative):
    for r in lab.rows(
        f"SELECT * EXCLUDE (direction) FROM direction($several, '{positive}', '{negative}')"
    ):
        assert (r["n_positive"], r["n_negative"]) == (COUNT[positive], COUNT[negative])
    rows = lab.rows(
        f"FROM direction_interval($several, '{positive}', '{negative}', resamples := {RESAMPLES})"
    )
    assert len(rows) == 4 * 2
    for r in rows:
        assert (r["n_positive"], r["n_negative"]) == (COUNT[positive], COUNT[negative])
        means = resampled(lab, r["site"], r["layer"])
        turned = means[:, LABELS.index(positive)] - means[:, LABELS.index(negative)]
        a, b = (
            np.mean(lab.examples[label, r["site"], r["layer"]], axis=0)
            for label in (positive, negative)
        )
        angles = [np.degrees(np.arccos(cosine(one, a - b))) for one in turned]
        assert r["angle"] == pytest.approx(np.quantile(angles, 0.95), rel=1e-6)
    assert {r["angle"] for r in lab.rows("FROM direction_interval($single, 'joy', 'fear')")} == {
        None
    }
    assert lab.rows(f"FROM direction_interval($several, '{positive}', '{positive}')") == []
    assert lab.rows(f"FROM direction_interval($several, '{positive}', 'no such label')") == []


def test_how_far_references_lie_apart(lab):
    rows = lab.rows("FROM reference_separation($several)")
    assert len(rows) == 4 * 2
    for r in rows:
        some = {label: np.array(lab.examples[label, r["site"], r["layer"]]) for label in LABELS}
        means = np.array([some[label].mean(0) for label in LABELS])
        assert (r["labels"], r["n"]) == (3, 8)
        pairs = {(i, j): 1 - cosine(means[i], means[j]) for i in range(3) for j in range(i + 1, 3)}
        same(r["distance"], np.mean(list(pairs.values())))
        same(r["distance_min"], min(pairs.values()))
        nearest = min(pairs, key=pairs.get)
        assert (r["label_a"], r["label_b"]) == (LABELS[nearest[0]], LABELS[nearest[1]])
        size = np.sqrt((means**2).sum(1).mean())
        same(r["spread"], np.sqrt(((means - means.mean(0)) ** 2).sum(1).mean()) / size)
        inside = sum(((x - x.mean(0)) ** 2).sum() for x in some.values()) / (8 - 3)
        same(r["within"], np.sqrt(inside) / size)
        grand = np.concatenate(list(some.values())).mean(0)
        outside = sum(len(x) * ((x.mean(0) - grand) ** 2).sum() for x in some.values()) / (3 - 1)
        same(r["ratio"], outside / inside)
    for r in lab.rows("FROM reference_separation($single)"):
        assert (r["labels"], r["n"], r["within"], r["ratio"]) == (3, 3, None, None)
        assert r["distance"] > 0


def test_labels_that_mean_nothing_have_the_ratio_of_chance(lab):
    """Examples of four labels drawn alike: between the labels the mean square is that within them."""
    rng = np.random.default_rng(0)
    drawn = [(f"l{i % 4}", i, rng.standard_normal(64).astype("f4").tolist()) for i in range(400)]
    lab.db.execute("CREATE TEMP TABLE drawn (label VARCHAR, place INTEGER, vector FLOAT[])")
    lab.db.executemany("INSERT INTO drawn VALUES (?, ?, ?)", drawn)
    lab.db.execute("""
        CREATE TEMP MACRO states_of(run_id) AS TABLE
        SELECT 'x' AS run_id, NULL::INTEGER AS prompt_id, 'example' AS state, place AS state_index, label, 0 AS layer,
               'hidden_out' AS site, vector FROM drawn
    """)
    try:
        ratio = lab.rows("SELECT ratio FROM reference_separation('x')")[0]["ratio"]
    finally:
        lab.db.execute("DROP MACRO TABLE temp.states_of")
    assert ratio == pytest.approx(1, abs=0.25)  # F of 192 and 25,344 degrees of freedom
