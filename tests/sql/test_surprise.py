"""`token_surprise` against numpy, with logits and without."""

import numpy as np
import pytest


@pytest.mark.parametrize("run", ["one", "no_sites"])
def test_surprise_and_entropy_against_numpy(lab, run):
    rows = lab.rows(f"FROM token_surprise(${run})")
    logits = np.array(
        [r["logits"] for r in lab.rows(f"FROM outputs_of(${run}) ORDER BY position")], "f8"
    )
    ids = [r["token_id"] for r in lab.rows(f"FROM tokens WHERE run_id = ${run} ORDER BY position")]
    said = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert rows[0]["surprise"] is None and rows[-1]["entropy"] is None
    assert [r["surprise"] for r in rows[1:]] == pytest.approx(
        [-said[p, ids[p + 1]] for p in range(len(said))]
    )
    assert [r["entropy"] for r in rows[:-1]] == pytest.approx(-(np.exp(said) * said).sum(1))


def test_without_logits_the_passes_tell(lab):
    rows = {r["position"]: r for r in lab.rows("FROM token_surprise($bare)")}
    steps = lab.rows("FROM steps WHERE run_id = $bare")
    entropies = {p: r["entropy"] for p, r in rows.items() if r["entropy"] is not None}
    assert entropies == {s["seq_len"] - 1: s["entropy"] for s in steps}
    surprises = {p: r["surprise"] for p, r in rows.items() if r["surprise"] is not None}
    assert surprises == {s["seq_len"]: -s["argmax_logprob"] for s in steps}


def test_another_conversation_has_no_rows(lab):
    assert lab.rows("FROM token_surprise($one, prompt := 5)") == []
