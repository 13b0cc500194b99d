"""Tokens that two runs share, what is told of layers by them, and tokens of extreme length."""

import numpy as np
import pytest
from reference import same

TOKENS = ("prompt_id INTEGER", "position INTEGER", "token VARCHAR", "is_generated BOOLEAN")


def pairs(a: list[str], b: list[str], first: int = 0) -> set[tuple[int, int]]:
    """Places of the common beginning and the common end, in Python."""
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    found = {(i, i) for i in range(start)} | {(len(a) - 1 - k, len(b) - 1 - k) for k in range(end)}
    return {(first + i, first + j) for i, j in found}


@pytest.fixture
def texts(lab):
    """A function that gives runs `x` and `y` their tokens, as (prompt, reply) for each conversation."""
    lab.db.execute(f"CREATE TEMP TABLE texts (run VARCHAR, {', '.join(TOKENS)})")
    lab.db.execute(
        "CREATE TEMP MACRO _tokens_of(run_id) AS TABLE SELECT t.* EXCLUDE (run) FROM texts AS t WHERE t.run = run_id"
    )

    def fill(**runs):
        for run, conversations in runs.items():
            for prompt_id, (prompt, reply) in enumerate(conversations):
                rows = [
                    (run, prompt_id, i, token, i >= len(prompt))
                    for i, token in enumerate([*prompt, *reply])
                ]
                lab.db.executemany(
                    "INSERT INTO texts VALUES (?, ?, ?, ?, ?)", rows
                ) if rows else None

    yield fill
    lab.db.execute("DROP MACRO TABLE temp._tokens_of")
    lab.db.execute("DROP TABLE temp.texts")


def shared(lab):
    return {
        (r["prompt_id"], r["position_a"], r["position_b"])
        for r in lab.rows("FROM shared_tokens('x', 'y')")
    }


@pytest.mark.parametrize(("a", "b", "expected"), [
    ("abc", "abc", {(0, 0), (1, 1), (2, 2)}),
    ("sys hi", "s hi", {(0, 0), (3, 1), (4, 2), (5, 3)}),       # what follows a longer system prompt
    ("xabc", "yabc", {(1, 1), (2, 2), (3, 3)}),
    ("aa", "aaa", {(0, 0), (1, 1)}),                             # no token is paired twice
    ("abab", "abxab", {(0, 0), (1, 1), (2, 3), (3, 4)}),
    ("abc", "xyz", set()),
    ("axb", "aybz", {(0, 0)}),
])  # fmt: skip
def test_common_beginning_and_end(lab, texts, a, b, expected):
    texts(x=[(a, "")], y=[(b, "")])
    assert (
        shared(lab)
        == {(0, *pair) for pair in expected}
        == {(0, *pair) for pair in pairs(list(a), list(b))}
    )


def test_prompt_and_reply_are_aligned_each(lab, texts):
    texts(x=[("sys hi", "ok.")], y=[("s hi", "okay.")])
    replies = {(6, 4), (7, 5), (8, 8)}
    assert shared(lab) == {(0, *pair) for pair in {(0, 0), (3, 1), (4, 2), (5, 3)} | replies}


@pytest.mark.parametrize("seed", range(10))
def test_any_text(lab, texts, seed):
    rng = np.random.default_rng(seed)
    a, b = (
        [("".join(rng.choice(list("ab"), rng.integers(0, 8))), "") for _ in range(6)] for _ in "xy"
    )
    texts(x=a, y=b)
    expected = [
        {(p, *pair) for pair in pairs(*one)}
        for p, one in enumerate((x[0], y[0]) for x, y in zip(a, b, strict=True))
    ]
    found = shared(lab)
    assert found == set().union(*expected)
    assert all(a[p][0][i] == b[p][0][j] for p, i, j in found)


def test_layers_that_share_nothing_are_told_so(lab, texts):
    """Vectors of noise, wider than there are tokens: the plain number says 0.9, the one without bias 0."""
    rng = np.random.default_rng(0)
    tokens = [str(i) for i in range(30)]
    texts(x=[(tokens, "")], y=[(["other", *tokens], "")])
    lab.db.execute(
        "CREATE TEMP TABLE noise (run VARCHAR, position INTEGER, layer INTEGER, vector FLOAT[])"
    )
    for run in "xy":
        rows = [
            (run, p, layer, rng.standard_normal(300).astype("f4").tolist())
            for p in range(31)
            for layer in range(4)
        ]
        lab.db.executemany(
            "INSERT INTO noise VALUES (?, ?, ?, ?)", rows[: 120 if run == "x" else None]
        )
    lab.db.execute(
        "CREATE TEMP MACRO tensor_of(run_id, site) AS TABLE "
        "SELECT 0 AS prompt_id, position, layer, vector FROM noise WHERE run = run_id"
    )
    try:
        rows = lab.rows("FROM linear_cka('x', 'y', 'hidden_out')")
    finally:
        lab.db.execute("DROP MACRO TABLE temp.tensor_of")
        lab.db.execute("DROP TABLE temp.noise")
    assert len(rows) == 16
    assert {r["positions"] for r in rows} == {30}
    assert min(r["cka_biased"] for r in rows) > 0.8
    assert abs(np.mean([r["cka"] for r in rows])) < 0.05


def test_runs_without_common_tokens_have_no_rows(lab, texts):
    texts(x=[("abcdefghijklmnop", "")], y=[("ponmlkjihgfedcba", "")])
    assert lab.rows("FROM linear_cka('x', 'y', 'hidden_out')") == []
    assert lab.rows("FROM shared_tokens('x', 'no such run')") == []


@pytest.mark.parametrize("times", [1.1, 1.5, 4])
def test_tokens_of_extreme_length(lab, times):
    norms = {
        at: np.linalg.norm(v)
        for (layer, at), v in lab.tensors("one", "hidden_out").items()
        if layer == 2
    }
    usual = np.median(list(norms.values()))
    rows = lab.rows(
        f"FROM token_projection($one, 'joy', 'fear', 2, 'hidden_out', times := {times})"
    )
    assert len(rows) == len(norms)
    for r in rows:
        length = norms[r["position"]]
        same(r["norm"], length)
        assert r["is_extreme"] == (length > times * usual or length * times < usual)
    assert {r["is_extreme"] for r in rows} >= ({True, False} if times == 1.1 else {False})


def test_convergence_of_any_state_and_of_sublayers(lab):
    states = lab.states("one")
    rows = lab.rows("FROM convergence($one, kinds := ['snapshot', 'reference'])")
    assert len(rows) == (6 + 3) * 4

    def vector(r, site, layer):
        return next(
            v
            for k, v in states.items()
            if k[1:3] == (r["state"], r["state_index"]) and k[4:] == (layer, site)
        )

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for r in rows:
        before, after = vector(r, "hidden_in", r["layer"]), vector(r, "hidden_out", r["layer"])
        same(r["cosine_adjacent"], cosine(before, after))
        same(r["relative_step"], np.linalg.norm(after - before) / np.linalg.norm(before))
        same(r["cosine_last"], cosine(after, vector(r, "hidden_out", 3)))
    rows = lab.rows("FROM sublayer_convergence($one, kinds := ['final', 'snapshot'])")
    assert len(rows) == (1 + 6) * 4 * 2
    for r in rows:
        before, attn, mlp, after = (
            vector(r, site, r["layer"])
            for site in ("hidden_in", "attn_out", "mlp_down_out", "hidden_out")
        )
        middle = before + attn
        a, b, added = (before, middle, attn) if r["site"] == "attn_out" else (middle, after, mlp)
        same(r["cosine_adjacent"], cosine(a, b))
        same(r["relative_step"], np.linalg.norm(added) / np.linalg.norm(a))
        same(r["cosine_last"], cosine(b, vector(r, "hidden_out", 3)))


@pytest.mark.parametrize(
    ("name", "column"), [("arrival_depth", "cosine_last"), ("settling_depth", "cosine_adjacent")]
)
def test_two_notions_of_depth(lab, name, column):
    for kinds in ("['initial', 'final']", "['snapshot']"):
        rows = lab.rows(f"FROM convergence($one, kinds := {kinds})")
        for threshold in (0.1, 0.3, 0.7, 0.95):
            found = lab.rows(f"FROM {name}($one, threshold := {threshold}, kinds := {kinds})")
            assert len(found) == len(rows) // 4
            for r in found:
                mine = [
                    x
                    for x in rows
                    if (x["state"], x["state_index"]) == (r["state"], r["state_index"])
                ]
                kept = [x[column] >= threshold for x in sorted(mine, key=lambda x: x["layer"])]
                assert r[name] == next((n for n in range(4) if all(kept[n:])), None)
