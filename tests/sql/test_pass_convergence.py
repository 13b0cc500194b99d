"""How the stream settles in a pass, against numpy."""

import numpy as np
import pytest
from reference import cosine, same


@pytest.mark.parametrize("step", [0, 2])
def test_pass_convergence(lab, step):
    before, after = lab.tensors("one", "hidden_in"), lab.tensors("one", "hidden_out")
    rows = lab.rows(f"FROM pass_convergence($one, {step})")
    places = range(12) if step == 0 else [11 + step]
    layers = sorted({layer for layer, _ in after})
    assert [r["layer"] for r in rows] == layers
    for r in rows:
        layer = r["layer"]
        turns = [cosine(before[layer, p], after[layer, p]) for p in places]
        strides = [
            np.linalg.norm(after[layer, p] - before[layer, p]) / np.linalg.norm(before[layer, p])
            for p in places
        ]
        ends = [cosine(after[layer, p], after[layers[-1], p]) for p in places]
        assert r["tokens"] == len(places)
        for name, values in (
            ("cosine_adjacent", turns),
            ("relative_step", strides),
            ("cosine_last", ends),
        ):
            same(r[name], values[-1])
            same(r[f"{name}_mean"], np.mean(values))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.5])
def test_pass_depth(lab, threshold):
    rows = lab.rows("FROM pass_convergence($one, 0)")
    depths = lab.rows(f"FROM pass_depth($one, 0, threshold := {threshold})")
    assert [r["place"] for r in depths] == ["last token", "mean over the tokens"]
    for found, end in zip(depths, ("", "_mean"), strict=True):
        for depth, column in (
            ("settling_depth", "cosine_adjacent"),
            ("arrival_depth", "cosine_last"),
        ):
            values = [r[column + end] for r in rows]
            first = [n for n in range(len(values)) if min(values[n:]) >= threshold]
            assert found[depth] == (rows[first[0]]["layer"] if first else None)
        assert found["layers"] == len(rows)


@pytest.mark.parametrize("call", ["pass_convergence($x, 0)", "pass_depth($x, 0)"])
def test_nothing_kept_gives_no_rows(lab, call):
    assert lab.rows(f"FROM {call.replace('$x', chr(39) + 'no such run' + chr(39))}") == []
    assert lab.rows(f"FROM {call.replace('$x', '$no_sites')}") == []
    several = lab.rows(f"FROM {call.replace('$x', '[$one, $shallow]')}")
    assert {r["run_id"] for r in several} == {lab.ids["one"], lab.ids["shallow"]}
