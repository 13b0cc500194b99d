"""Every analysis against numpy on a small synthetic lake."""

from collections import defaultdict

import numpy as np
import pytest
from reference import cka, cosine, jaccard, mae, same, unbiased_cka

from warehouse.catalog import catalog
from warehouse.vocabulary import STATE_SITES


def check_scores(row, a, b):
    same(row["cosine"], cosine(a, b))
    same(row["mae"], mae(a, b))
    same(row["jaccard"], jaccard(a, b))


def check_summary(row, rows):
    """One line of a summary against the rows that it sums up."""
    for name, extreme in (("cosine", np.min), ("mae", np.max), ("jaccard", np.min)):
        values = np.array([r[name] for r in rows])
        end = extreme.__name__.removeprefix("a")
        same(row[f"{name}_mean"], values.mean())
        same(row[f"{name}_std"], values.std())
        same(row[f"{name}_median"], np.median(values))
        same(row[f"{name}_{end}"], extreme(values))
        assert row[f"{name}_{end}_layer"] == min(
            r["layer"] for r in rows if r[name] == row[f"{name}_{end}"]
        )
    assert row["layers"] == len(rows)


@pytest.mark.parametrize("run", ["one", "narrow"])
def test_intra_run(lab, run):
    ends, rows = lab.ends(run), lab.rows(f"FROM intra_run(${run})")
    assert [(r["site"], r["layer"]) for r in rows] == sorted(
        (s, n) for s in STATE_SITES for n in range(4)
    )
    for r in rows:
        check_scores(
            r, ends["initial", r["site"], r["layer"]], ends["final", r["site"], r["layer"]]
        )
    for line in lab.rows(f"FROM intra_run_summary(${run})"):
        check_summary(line, [r for r in rows if r["site"] == line["site"]])


def test_inter_run(lab):
    one, two = lab.ends("one"), lab.ends("two")
    rows = lab.rows("FROM inter_run($two, $one)")
    assert len(rows) == 2 * 4 * 4
    for r in rows:
        assert (r["run_a"], r["run_b"]) == (lab.ids["two"], lab.ids["one"])
        key = r["state"], r["site"], r["layer"]
        check_scores(r, one[key], two[key])
    for line in lab.rows("FROM inter_run_summary($two, $one)"):
        check_summary(
            line, [r for r in rows if (r["site"], r["state"]) == (line["site"], line["state"])]
        )
    assert lab.rows("FROM inter_run($one, $one)") == []


def test_inter_run_all_leaves_out_what_does_not_compare(lab):
    every = lab.rows("FROM inter_run_all()")
    found = {(r["run_a"], r["run_b"]) for r in every}
    pairs = lab.rows("FROM run_pairs()")
    assert len(pairs) == 15
    assert found == {(p["run_a"], p["run_b"]) for p in pairs if p["comparable"]}
    assert (lab.ids["one"], lab.ids["two"]) in found
    why = {(p["run_a"], p["run_b"]): p["reason"] for p in pairs}
    assert why[lab.ids["one"], lab.ids["narrow"]] == "the vectors are 128 and 12 wide"
    assert why[lab.ids["one"], lab.ids["shallow"]] == "the models have 4 and 2 layers"
    by_key = {
        (r["state"], r["site"], r["layer"]): r for r in lab.rows("FROM inter_run($one, $two)")
    }
    ours = [r for r in every if (r["run_a"], r["run_b"]) == (lab.ids["one"], lab.ids["two"])]
    assert {(r["state"], r["site"], r["layer"]): r for r in ours} == by_key
    for line in lab.rows("FROM inter_run_all_summary()"):
        keys = ("run_a", "run_b", "site", "state")
        check_summary(line, [r for r in every if all(r[k] == line[k] for k in keys)])


def centred(states, label, site, layer, vector):
    references = [
        v for key, v in states.items() if key[1] == "reference" and key[4:] == (layer, site)
    ]
    mean = np.mean(references, axis=0)
    return cosine(vector - mean, reference(states, label, site, layer) - mean)


def reference(states, label, site, layer):
    return next(
        v
        for k, v in states.items()
        if k[1] == "reference" and k[3] == label and k[4:] == (layer, site)
    )


def test_snapshots_against_references(lab):
    states, rows = lab.states("one"), lab.rows("FROM snapshot_reference($one)")
    assert len(rows) == 6 * 3 * 4 * 4
    assert {r["message_index"] for r in rows if r["is_generated"]} == {5}
    raw = lab.rows("FROM snapshot_cosine($one)")
    centered = lab.rows("FROM snapshot_cosine($one, centered := true)")
    for r, plain, without_mean in zip(rows, raw, centered, strict=True):
        snapshot = states[0, "snapshot", r["message_index"], None, r["layer"], r["site"]]
        check_scores(r, snapshot, reference(states, r["label"], r["site"], r["layer"]))
        key = ("message_index", "role", "label", "site", "layer", "is_generated")
        assert [r[k] for k in key] == [plain[k] for k in key] == [without_mean[k] for k in key]
        same(plain["cosine"], r["cosine"])
        same(without_mean["cosine"], centred(states, r["label"], r["site"], r["layer"], snapshot))


def groups(rows, *keys):
    out = defaultdict(list)
    for row in rows:
        out[tuple(row[k] for k in keys)].append(row)
    return out


def mean(rows, name="cosine"):
    return np.mean([r[name] for r in rows])


def test_averages_over_turns_leave_the_reply_out(lab):
    turns = [r for r in lab.rows("FROM snapshot_reference($one)") if not r["is_generated"]]
    expected = groups(turns, "role", "label", "site", "layer")
    rows = lab.rows("FROM role_average($one)")
    assert {r["role"]: r["turns"] for r in rows} == {"system": 1, "user": 2, "assistant": 2}
    assert len(rows) == len(expected)
    for r in rows:
        some = expected[r["role"], r["label"], r["site"], r["layer"]]
        for name in ("cosine", "mae", "jaccard"):
            same(r[name], mean(some, name))
    expected = groups(turns, "label", "site")
    for r in lab.rows("FROM reference_summary($one)"):
        values = [x["cosine"] for x in expected[r["label"], r["site"]]]
        for name, function in (
            ("mean", np.mean),
            ("std", np.std),
            ("median", np.median),
            ("min", min),
            ("max", max),
        ):
            same(r[f"cosine_{name}"], function(values))
        same(r["mae_mean"], mean(expected[r["label"], r["site"]], "mae"))
        same(r["jaccard_mean"], mean(expected[r["label"], r["site"]], "jaccard"))


def test_reference_shift(lab):
    cosines = groups(lab.rows("FROM snapshot_cosine($one)"), "site", "message_index", "label")
    rows = lab.rows("FROM reference_shift($one)")
    assert len(rows) == 4 * 6 * 3
    for site in STATE_SITES:
        table = np.array(
            [[mean(cosines[site, k, label]) for label in ("calm", "fear", "joy")] for k in range(6)]
        )
        expected = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        found = [r["shift"] for r in rows if r["site"] == site]
        assert found == pytest.approx(expected.reshape(-1).tolist(), abs=1e-7)


@pytest.mark.parametrize("centered", ["false", "true"])
def test_what_references_tell(lab, centered):
    cosines = lab.rows(f"FROM snapshot_cosine($one, centered := {centered})")
    turns = [r for r in cosines if not r["is_generated"]]
    for r in lab.rows(f"FROM discriminative_layers($one, centered := {centered})"):
        some = [t for t in turns if all(t[k] == r[k] for k in ("role", "site", "layer"))]
        means = {label: mean(rows) for (label,), rows in groups(some, "label").items()}
        same(r["spread"], max(means.values()) - min(means.values()))
        same(r["std"], np.std(list(means.values())))
        assert r["closest"] == max(means, key=means.get)
    rows = lab.rows(f"FROM damping($one, centered := {centered})")
    assert len(rows) == 4 * (3 + 1)
    for r in rows:
        some = [t for t in turns if t["site"] == r["site"] and r["label"] in (None, t["label"])]
        by_role = groups(some, "role")
        same(r["cosine_user"], mean(by_role["user",]))
        same(r["cosine_assistant"], mean(by_role["assistant",]))
        same(r["damping"], mean(by_role["assistant",]) - mean(by_role["user",]))
    fade = lab.rows(f"FROM memory_fade($one, centered := {centered})")
    over_layers = groups(cosines, "site", "message_index", "label")
    assert {r["origin"] for r in fade} == {1, 3}
    assert {r["message_index"] for r in fade if r["origin"] == 3} == {3, 4, 5}
    for r in fade:
        same(r["cosine"], mean(over_layers[r["site"], r["message_index"], r["label"]]))
        best = max(
            ("joy", "fear", "calm"),
            key=lambda name: mean(over_layers[r["site"], r["origin"], name]),
        )
        assert (r["label"], r["turns_since"]) == (best, r["message_index"] - r["origin"])


def test_compare_pairs(lab):
    lab.db.execute(
        "CREATE TEMP TABLE mine AS SELECT row_number() OVER () AS id, a.vector AS a, b.vector AS b "
        f"FROM states_of('{lab.ids['one']}') a JOIN states_of('{lab.ids['two']}') b USING (state, layer, site)"
    )
    expected = {r["id"]: r for r in lab.rows("SELECT id, cosine(a, b) AS cosine, mae(a, b) AS mae, "
                                             "top_jaccard(a, b) AS jaccard FROM mine")}  # fmt: skip
    rows = lab.rows("FROM compare_pairs('mine')")
    assert len(rows) == len(expected) > 100
    for r in rows:
        for name in ("cosine", "mae", "jaccard"):
            same(r[name], expected[r["id"]][name])


def test_residual_decomposition(lab):
    parts = {site: lab.tensors("one", site) for site in STATE_SITES}
    rows = lab.rows("FROM residual_decomposition($one)")
    assert [(r["step"], r["layer"]) for r in rows] == [(s, n) for s in range(4) for n in range(4)]
    for r in rows:
        at = r["layer"], 11 + r["step"]
        out = parts["hidden_out"][at]
        for site in STATE_SITES:
            same(r[f"norm_{site}"], np.linalg.norm(parts[site][at]))
        same(r["cosine_attn_out"], cosine(parts["attn_out"][at], out))
        same(r["cosine_mlp_down_out"], cosine(parts["mlp_down_out"][at], out))


def test_residual_decomposition_falls_back_on_the_states(lab):
    ends = lab.ends("bare")
    rows = lab.rows("FROM residual_decomposition($bare)")
    assert sorted({r["step"] for r in rows}) == [0, 3]
    for r in rows:
        same(
            r["norm_attn_out"],
            np.linalg.norm(ends["final" if r["step"] else "initial", "attn_out", r["layer"]]),
        )


def test_cross_layer_cosine(lab):
    out = lab.tensors("one", "mlp_gate")
    rows = lab.rows("FROM cross_layer_cosine($one, 2, 'mlp_gate')")
    assert len(rows) == 16
    for r in rows:
        same(r["cosine"], cosine(out[r["layer_a"], 13], out[r["layer_b"], 13]))


def test_neuron_trajectory(lab):
    act = lab.tensors("one", "mlp_down_in")
    rows = lab.rows("FROM neuron_trajectory($one, 2, 'mlp_act', 150)")
    assert [r["position"] for r in rows] == list(range(15))
    for r in rows:
        assert r["value"] == act[2, r["position"]][150]
        assert r["token"] == f"t{r['position']}"
    assert {r["value"] for r in lab.rows("FROM neuron_trajectory($one, 2, 'mlp_act', 160)")} == {
        None
    }


def test_token_similarity(lab):
    out = lab.tensors("one", "hidden_out")
    rows = lab.rows("FROM token_similarity($one, 1, 'hidden_out', 4)")
    assert [r["position"] for r in rows] == list(range(15))
    for r in rows:
        same(r["cosine"], cosine(out[1, r["position"]], out[1, 4]))


def test_nearest_tokens(lab):
    out = {
        (run, *key): v
        for run in ("one", "two", "shallow")
        for key, v in lab.tensors(run, "k").items()
    }
    asked = out["one", 1, 6]
    best = sorted(
        (-cosine(v, asked), run, at) for (run, layer, at), v in out.items() if layer == 1
    )[:5]
    vector = "(SELECT vector FROM tensor_of($one, 'k') WHERE layer = 1 AND position = 6)"
    rows = lab.rows(f"FROM nearest_tokens({vector}, 1, 'k', 5)")
    assert [(r["run_id"], r["position"]) for r in rows] == [
        (lab.ids[run], at) for _, run, at in best
    ]
    same(rows[0]["cosine"], 1)


def test_direction_and_projection(lab):
    states, out = lab.states("one"), lab.tensors("one", "attn_out")
    rows = lab.rows("FROM direction($one, 'joy', 'fear')")
    assert len(rows) == 16
    for r in rows:
        expected = reference(states, "joy", r["site"], r["layer"]) - reference(
            states, "fear", r["site"], r["layer"]
        )
        assert r["direction"] == r["vector"] == pytest.approx(expected.tolist())
        same(r["norm"], np.linalg.norm(expected))
    along = np.array(
        next(r["direction"] for r in rows if (r["site"], r["layer"]) == ("attn_out", 3))
    )
    for r in lab.rows("FROM token_projection($one, 'joy', 'fear', 3, 'attn_out')"):
        vector = out[3, r["position"]]
        joy, fear = (reference(states, label, "attn_out", 3) for label in ("joy", "fear"))
        same(
            r["projection"], (vector - (joy + fear) / 2) @ along / np.linalg.norm(along)
        )  # 0 is the midpoint
        same(r["cosine"], cosine(vector, along))
        same(r["relative"], r["projection"] / np.linalg.norm(vector))
        same(r["positive_end"], (joy - (joy + fear) / 2) @ along / np.linalg.norm(along))
        same(r["negative_end"], (fear - (joy + fear) / 2) @ along / np.linalg.norm(along))
    assert lab.rows("FROM direction($one, 'joy', 'no such label')") == []


def test_attention_entropy(lab):
    weights = {tuple(r[k] for k in ("layer", "head", "position")): np.array(r["weights"])
               for r in lab.rows("FROM attention_of($one)")}  # fmt: skip
    rows = lab.rows("FROM attention_entropy($one)")
    assert len(rows) == len(weights)
    for r in rows:
        w = weights[r["layer"], r["head"], r["position"]]
        same(r["entropy"], -np.sum(w * np.log(w)))


def test_convergence(lab):
    ends = lab.ends("one")
    rows = lab.rows("FROM convergence($one)")
    for r in rows:
        state, layer = r["state"], r["layer"]
        before, after = ends[state, "hidden_in", layer], ends[state, "hidden_out", layer]
        same(r["cosine_adjacent"], cosine(before, after))
        same(r["relative_step"], np.linalg.norm(after - before) / np.linalg.norm(before))
        same(r["cosine_last"], cosine(after, ends[state, "hidden_out", 3]))
    for threshold in (0.1, 0.7, 0.95):
        for r in lab.rows(f"FROM effective_depth($one, threshold := {threshold})"):
            kept = [x["cosine_last"] >= threshold for x in rows if x["state"] == r["state"]]
            assert r["effective_depth"] == next(n for n in range(4) if all(kept[n:]))


def test_linear_cka(lab):
    one, narrow = lab.tensors("one", "hidden_out"), lab.tensors("narrow", "hidden_out")
    rows = lab.rows("FROM linear_cka($one, $narrow, 'hidden_out')")
    assert len(rows) == 16
    for r in rows:
        x, y = (
            np.stack([v[n, at] for at in range(15)])
            for v, n in ((one, r["layer_a"]), (narrow, r["layer_b"]))
        )
        assert r["positions"] == 15
        same(r["cka_biased"], cka(x, y))
        same(r["cka"], unbiased_cka(x, y))
    query = "FROM linear_cka($one, $two, 'q', positions := 5, at_least := {})"
    assert {r["positions"] for r in lab.rows(query.format(5))} == {5}
    assert lab.rows(query.format(6)) == []  # too few to say anything
    assert (
        lab.rows("FROM linear_cka($one, $two, 'q', positions := 3, at_least := 0)") == []
    )  # not defined


@pytest.mark.parametrize("call", [
    "intra_run($x)", "intra_run_summary($x)", "inter_run($x, $one)", "inter_run_summary($one, $x)",
    "snapshot_reference($x)", "snapshot_cosine($x)", "role_average($x)", "reference_summary($x)",
    "discriminative_layers($x)", "damping($x)", "memory_fade($x)", "residual_decomposition($x)",
    "cross_layer_cosine($x, 0, 'hidden_in')", "neuron_trajectory($x, 0, 'mlp_act', 0)", "attention_entropy($x)",
    "token_similarity($x, 0, 'hidden_in', 0)", "direction($x, 'joy', 'fear')", "convergence($x)",
    "token_projection($x, 'joy', 'fear', 0, 'hidden_in')", "effective_depth($x)", "linear_cka($x, $one, 'hidden_in')",
    "snapshot_interval($x)", "shift_interval($x)", "leaning($x)", "direction_interval($x, 'joy', 'fear')",
    "reference_separation($x)", "compare_states($x, 'final', $one, 'final')", "group_states($x, 'final')",
    "group_members($x, 'final')", "state_matrix($x, 'final')", "attended_value($x)", "sublayer_convergence($x)",
    "arrival_depth($x)", "settling_depth($x)", "shared_tokens($x, $one)",
])  # fmt: skip
def test_nothing_to_compare_gives_no_rows(lab, call):
    assert lab.rows(f"FROM {call.replace('$x', chr(39) + 'no such run' + chr(39))}") == []
    if "reference" not in call and "direction" not in call and "snapshot" not in call:
        rows = lab.rows(f"FROM {call.replace('$x', '$no_sites')}")
        assert {r.get("site", "hidden_out") for r in rows} <= {"hidden_out"}


def test_an_unknown_site_names_those_that_exist(lab):
    with pytest.raises(
        Exception, match="unknown site 'hiden_in'; the sites are hidden_in, hidden_out"
    ):
        lab.rows("FROM tensor_of($one, 'hiden_in')")


@pytest.mark.parametrize("seed", range(5))
def test_equal_references_leave_nothing_to_compare(two_runs, seed):
    lake, alpha, _ = two_runs
    vector = np.random.default_rng(seed).normal(0, 1e3, 576).astype("f4").tolist()
    with catalog.connect(lake) as db:
        db.execute(
            """
            CREATE TEMP TABLE alike AS
            SELECT * EXCLUDE (n) REPLACE ($vector::FLOAT[] AS vector, 'label ' || n AS label, n AS state_index)
            FROM states_of($run) CROSS JOIN range(7) AS t(n)
            WHERE state = 'reference' AND state_index = 0
            UNION ALL
            SELECT * REPLACE ($vector::FLOAT[] AS vector) FROM states_of($run) WHERE state = 'snapshot'
            """,
            {"run": alpha, "vector": vector},
        )
        db.execute("CREATE TEMP MACRO states_of(run_id) AS TABLE FROM alike")
        for centered, expected in (("false", 1), ("true", None)):
            query = (
                f"SELECT DISTINCT round(cosine, 9) FROM snapshot_cosine(?, centered := {centered})"
            )
            assert db.execute(query, [alpha]).fetchall() == [(expected,)]
