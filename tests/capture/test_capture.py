"""Captures of a tiny random llama: what is kept, in which order, and what happens when something goes wrong."""

import dataclasses
import hashlib
import json

import captures
import numpy as np
import pytest
import tiny
import torch
from captures import CHAT, USER, family, make_scenario, rows, run
from transformers import AutoConfig, AutoModelForCausalLM

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.capture import scenarios
from warehouse.capture.plan import make_plan
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.models import limits, sites
from warehouse.models import loading as models
from warehouse.models import reader as generate


def test_every_pass_and_no_other(lake, llama):
    """max_new_tokens tokens need one prefill and that many decode steps less one."""
    run_id = run(lake, llama)
    steps = rows(
        lake, "select step, kind, seq_len from steps where run_id = ? order by step", run_id
    )
    n = rows(lake, "select n_prompt_tokens from prompts")[0][0]
    assert steps == [
        (0, "prefill", n),
        (1, "decode", n + 1),
        (2, "decode", n + 2),
        (3, "decode", n + 3),
    ]
    tokens = rows(lake, "select position, step, is_generated from tokens order by position")
    assert tokens == [(p, 0, False) for p in range(n)] + [
        (n, 1, True),
        (n + 1, 2, True),
        (n + 2, 3, True),
        (n + 3, None, True),
    ]
    read = rows(
        lake, "select step, position, count(*) from activations group by all order by position"
    )
    assert read == [(max(0, p - n + 1), p, 3) for p in range(n + 3)]


def test_an_end_of_sequence_token_stops(lake, llama):
    loaded, _ = llama
    first = run(lake, llama)
    generated = [
        r[0]
        for r in rows(
            lake, "select generated_token_id from steps where run_id = ? order by step", first
        )
    ]
    loaded.model.generation_config.eos_token_id = [299, generated[1]]
    try:
        assert generated[1] in limits.eos_ids(loaded.model, loaded.tokenizer)
        second = run(lake, llama)
    finally:
        loaded.model.generation_config.eos_token_id = None
    at = generated.index(generated[1])
    assert rows(lake, "select stop_reason, n_generated from prompts where run_id = ?", second) == [
        ("eos", at + 1)
    ]
    assert rows(lake, "select stop_reason from prompts where run_id = ?", first) == [("length",)]
    assert rows(lake, "select count(*) from steps where run_id = ?", second) == [(at + 1,)]


def test_step_numbers_are_those_of_the_logits(lake, llama):
    run_id = run(lake, llama)
    n = rows(lake, "select n_prompt_tokens from prompts")[0][0]
    logits = np.array(
        [r[0] for r in rows(lake, "select logits from outputs order by position")], "f8"
    )[n - 1 :]
    logprobs = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    steps = rows(
        lake,
        "select argmax_token_id, argmax_logprob, entropy, top1_prob, generated_token_id from steps order by step",
    )
    for row, (token, logprob, entropy, top1, generated) in zip(logprobs, steps, strict=True):
        assert token == generated == row.argmax()
        assert (logprob, top1) == pytest.approx((row.max(), np.exp(row.max())), rel=1e-4)
        assert entropy == pytest.approx(-(np.exp(row) * row).sum(), rel=1e-4)
    top = rows(lake, "select token_id from top_tokens where run_id = ? order by step, rank", run_id)
    assert [t for (t,) in top] == [int(t) for row in logprobs for t in np.argsort(-row)[:3]]


def test_two_captures_give_equal_rows(lake, llama):
    sampled = {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 50,
        "top_p": 0.9,
        "max_new_tokens": 6,
    }
    hashes = []
    for seed in (1, 1, 2):
        run_id = run(lake, llama, generation=sampled | {"seed": seed})
        digest = hashlib.sha256()
        for table in ("activations_of(?)", "attention_of(?)", "outputs_of(?)", "states_of(?)"):
            with catalog.connect(lake) as db:
                names = [
                    c[0]
                    for c in db.execute(f"from {table} limit 0", [run_id]).description
                    if c[0] != "run_id"
                ]
                keys = ", ".join(
                    n
                    for n in names
                    if n
                    in (
                        "prompt_id",
                        "state",
                        "state_index",
                        "step",
                        "layer",
                        "head",
                        "position",
                        "site",
                    )
                )
                for row in db.execute(
                    f"select {', '.join(names)} from {table} order by {keys}", [run_id]
                ).fetchall():
                    digest.update(repr(row).encode())
        hashes.append(digest.hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("name", "trees"), [("llama", True), ("llama", False), ("phi3:longrope", True)]
)
def test_snapshots_equal_direct_prefills(lake, name, trees):
    """Through the shared cache or from scratch: the state after each message is the same."""
    loaded, found = family(name)
    found = dataclasses.replace(found, trees=trees)
    run_id = run(lake, (loaded, found))
    plan = make_plan(make_scenario(), loaded, found)
    _, _, snapshots = plan.prompts[0]
    targets = [("snapshot", s.message_index, s.ids) for s in snapshots]
    targets += [("reference", i, read.ids) for i, (_, _, read) in enumerate(plan.references)]
    for state, index, ids in targets:
        with torch.inference_mode():
            hidden = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        stored = rows(
            lake, "select vector from states_of(?) where state = ? and state_index = ? and site = 'hidden_in' order by layer",
            run_id, state, index,
        )  # fmt: skip
        assert len(stored) == 3
        for layer, (vector,) in enumerate(stored):
            direct = hidden[layer][0, -1].numpy()
            assert np.abs(np.array(vector) - direct).max() <= 1e-5 * np.abs(direct).max()


@pytest.mark.parametrize(("kind", "own"), [
    ("doge", {"keep_window_size": 8}),  # past it, which keys are kept depends on later tokens too
    ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}),
])  # fmt: skip
def test_snapshots_past_a_window_equal_direct_prefills(lake, kind, own):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **tiny._COMMON | own)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        weight.data.add_(torch.randn(weight.shape) * 0.1)
    loaded = captures.loaded(model)
    found = sites.discover(model)
    run_id = run(lake, (loaded, found))
    _, rendered, snapshots = make_plan(make_scenario(), loaded, found).prompts[0]
    assert len(rendered.ids) > limits.reach(model)
    for snapshot in snapshots:
        with torch.inference_mode():
            hidden = model(torch.tensor([snapshot.ids]), output_hidden_states=True).hidden_states
        stored = rows(
            lake, "select vector from states_of(?) where state = 'snapshot' and state_index = ? and site = 'hidden_in' "
            "order by layer", run_id, snapshot.message_index,
        )  # fmt: skip
        for layer, (vector,) in enumerate(stored):
            direct = hidden[layer][0, -1].numpy()
            assert np.abs(np.array(vector) - direct).max() <= 1e-4 * np.abs(direct).max()


def test_the_snapshot_after_the_reply(lake, llama):
    run_id = run(lake, llama)
    found = rows(
        lake,
        "select message_index, role, is_generated from snapshots where run_id = ? order by 1",
        run_id,
    )
    assert found == [
        (0, "system", False),
        (1, "user", False),
        (2, "assistant", False),
        (3, "user", False),
        (4, "assistant", True),
    ]
    text = rows(lake, "select generated_text from prompts")[0][0]
    assert rows(lake, "select content, is_generated from messages where message_index = 4") == [
        (text, True)
    ]
    states = rows(
        lake,
        "select state, state_index, count(*) from states_of(?) group by all order by all",
        run_id,
    )
    expected = [
        ("final", 3),
        ("initial", 0),
        ("reference", 0),
        ("reference", 1),
        *(("snapshot", k) for k in range(5)),
    ]
    assert states == [(*key, 3 * 4) for key in expected]


def test_the_last_snapshot_is_the_initial_state(lake, llama):
    run(lake, llama)
    query = "select vector from states where state = ? and state_index = ? order by layer, site"
    assert rows(lake, query, "snapshot", 3) == rows(lake, query, "initial", 0)


def test_fewer_passes_than_prefixes(lake, llama, monkeypatch):
    """A prefix that ends where the next message begins costs no pass; others read only what is new."""
    read: list[int] = []
    original = generate.Reader._forward
    monkeypatch.setattr(
        generate.Reader,
        "_forward",
        lambda self, ids, *a, **o: read.append(len(ids)) or original(self, ids, *a, **o),
    )
    run(lake, llama)
    n = rows(lake, "select n_prompt_tokens from prompts")[0][0]
    assert read[:4] == [n, 1, 1, 1]
    # One pass for the reply and the prefixes that end with the system's and the assistant's message, one for the
    # references. Prefixes that end with a user message are followed by what they end with, or are the prompt itself.
    assert len(read) == 4 + 1 + 1
    assert read[4] <= 8
    read.clear()
    loaded, found = llama
    run(lake, (loaded, dataclasses.replace(found, trees=False)))
    assert read[:4] == [n, 1, 1, 1]
    assert len(read) == 4 + 3 + 2


def test_prompts_side_by_side(lake, llama):
    run_id = run(
        lake,
        llama,
        prompt=[{"messages": CHAT}, {"messages": [USER]}],
        generation={"max_new_tokens": 3},
    )
    assert rows(
        lake, "select prompt_id, n_generated from prompts where run_id = ? order by 1", run_id
    ) == [(0, 3), (1, 3)]
    alone = run(lake, llama, prompt={"messages": [USER]}, generation={"max_new_tokens": 3})
    query = "select step, position, layer, hidden_out from activations_of(?) where prompt_id = ? order by layer, position"
    for (*a, x), (*b, y) in zip(
        rows(lake, query, run_id, 1), rows(lake, query, alone, 0), strict=True
    ):
        assert a == b
        assert np.allclose(x, y, atol=1e-6)
    assert rows(
        lake,
        "select count(distinct prompt_id) from states_of(?) where state <> 'reference'",
        run_id,
    ) == [(2,)]


def test_one_run_for_each_message(lake, llama, monkeypatch):
    monkeypatch.setattr(models, "load", lambda spec, **options: llama[0])
    asked = make_scenario(prompt={"messages": CHAT, "run_at_each_message": True})
    ids = list(scenarios.capture([asked], [lake]))
    assert len(ids) == 4
    assert [i.partition("_")[0] for i in ids] == ["tiny-m00", "tiny-m01", "tiny-m02", "tiny-m03"]
    counts = rows(
        lake, "select count(*) from messages where not is_generated group by run_id order by run_id"
    )
    assert counts == [(1,), (2,), (3,), (4,)]


def test_neighbours_share_a_model(lake, llama, monkeypatch):
    loads = []
    monkeypatch.setattr(models, "load", lambda spec, **options: loads.append(spec.id) or llama[0])
    other = make_scenario(model={"id": "other", "dtype": "float32", "device": "cpu"})
    list(scenarios.capture([make_scenario(), make_scenario(), other], [lake] * 3))
    assert loads == ["tiny", "other"]


@pytest.mark.parametrize("flag", ["hidden_states", "attention_weights", "qkv", "mlp", "logits"])
def test_a_flag_that_is_off_stores_nothing(lake, llama, flag):
    run_id = run(lake, llama, capture={flag: False})
    lost = {
        "hidden_states": ["hidden_in", "hidden_out", "attn_out", "mlp_down_out"], "qkv": ["q", "k", "v"],
        "mlp": ["mlp_gate", "mlp_up", "mlp_down_in"], "attention_weights": [], "logits": [],
    }[flag]  # fmt: skip
    for site in (
        "hidden_in",
        "hidden_out",
        "attn_out",
        "mlp_down_out",
        "q",
        "k",
        "v",
        "mlp_gate",
        "mlp_up",
        "mlp_down_in",
    ):
        count = rows(lake, f"select count({site}) from activations_of(?)", run_id)[0][0]
        assert (count == 0) == (site in lost)
    assert (rows(lake, "select count(*) from attention_of(?)", run_id)[0][0] == 0) == (
        flag == "attention_weights"
    )
    assert (rows(lake, "select count(logits) from outputs_of(?)", run_id)[0][0] == 0) == (
        flag == "logits"
    )
    if lost:
        assert rows(lake, "select distinct reason from sites where site = ?", lost[0]) == [
            (f"capture.{flag} is off",)
        ]


def test_some_layers(lake, llama):
    run_id = run(lake, llama, capture={"layers": [2, 0]})
    assert rows(lake, "select distinct layer from activations_of(?) order by 1", run_id) == [
        (0,),
        (2,),
    ]
    assert rows(lake, "select distinct layer from states_of(?) order by 1", run_id) == [(0,), (2,)]
    assert rows(lake, "select layer from layers order by 1") == [(0,), (2,)]


@pytest.mark.parametrize(("changes", "expected"), [
    ({"capture": {"layers": [7]}}, "capture.layers: there is no layer 7; the model has 0 to 2"),
    ({"generation": {"top_k": 999, "do_sample": True}}, "generation.top_k is 999; the model's vocabulary has 300"),
    ({"capture": {"top_k_probs": 999}}, "capture.top_k_probs is 999"),
    ({"generation": {"max_new_tokens": 500}}, "and 500 to generate are more than the model's context of 128"),
    ({"prompt": {"messages": [{"role": "user", "content": "x" * 500}]}}, "more than the model's context of 128"),
])  # fmt: skip
def test_requests_that_do_not_fit_the_model(lake, llama, changes, expected):
    with pytest.raises(AlabError, match=expected) as caught:
        run(lake, llama, **changes)
    assert caught.value.exit_code == 2
    assert not lake.root.exists()


def test_a_conversation_without_tokens(lake, llama):
    loaded = models.Loaded(llama[0].model, tiny.tokenizer(template=False), "tiny", "float32", "cpu")
    with pytest.raises(AlabError, match="has no tokens"):
        capture.capture_one(
            make_scenario(prompt={"messages": [USER | {"content": ""}]}), loaded, llama[1], lake
        )


def test_a_model_without_a_chat_template(lake, llama):
    loaded = models.Loaded(llama[0].model, tiny.tokenizer(template=False), "tiny", "float32", "cpu")
    run_id = capture.capture_one(make_scenario(), loaded, llama[1], lake)
    assert rows(lake, "select prompt_text from prompts where run_id = ?", run_id) == [
        ("\n".join(m["content"] for m in CHAT),)
    ]


def test_metadata_is_complete(lake, llama):
    run_id = run(lake, llama)
    for table in ("runs", "prompts", "messages", "steps", "tokens", "top_tokens", "reference_states", "snapshots", "layers",
                  "sites", "files"):  # fmt: skip
        assert rows(lake, f"select count(*) > 0 from {table} where run_id = ?", run_id) == [(True,)]
    (scenario_json, env, tokenizer, size) = rows(
        lake, "select scenario_json, env_json, tokenizer_json, bytes from runs"
    )[0]
    assert scenario.parse(json.loads(scenario_json)) == make_scenario()
    assert json.loads(env)["torch"] == torch.__version__
    assert json.loads(tokenizer)["chat_template"] == tiny.TEMPLATE
    on_disk = sum(
        p.stat().st_size
        for p in lake.root.glob(f"[!.]*/run={run_id}/**/*.parquet")
        if "metadata" not in p.parts
    )
    assert size == on_disk
