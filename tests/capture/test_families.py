"""Every family, captured as a tiny random model through the whole of alab, and checked against the model itself."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from captures import loaded

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.models import limits, sites

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi é!"}]
NEW_TOKENS = 3
EXPERTS = frozenset({"mlp_gate", "mlp_up", "mlp_down_in"})
NO_GATE = frozenset({"mlp_gate"})

#: What a family lacks; everything else must be there in every layer.
ABSENT: dict[str, frozenset[str]] = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"), EXPERTS),
    **dict.fromkeys(("phi", "gpt2", "gpt_neox", "gptj", "opt", "bloom", "codegen"), NO_GATE),
    **dict.fromkeys(("falcon", "falcon:new", "falcon:alibi", "mpt", "starcoder2"), NO_GATE),
    **dict.fromkeys(("gpt_bigcode", "nemotron"), NO_GATE),
    "persimmon": NO_GATE | {"q", "k", "v"},
    "qwen3_next": EXPERTS | {"q", "k", "v", "attention"},
    "opt:post": EXPERTS | {"attn_out", "mlp_down_out"},
}  # fmt: skip


def scenario_for(**capture_options) -> scenario.Scenario:
    return scenario.parse({
        "name": "tiny", "model": {"id": "tiny", "dtype": "float32", "device": "cpu"},
        "prompt": {"messages": MESSAGES}, "generation": {"max_new_tokens": NEW_TOKENS},
        "capture": {"store_dtype": "float32", "top_k_probs": 3} | capture_options,
        "reference_states": [{"label": "joy", "messages": [{"role": "user", "content": "Joy!"}]}],
    })  # fmt: skip


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """Captures each family once: (model, lake's connection, what was found)."""
    lake = Lake(tmp_path_factory.mktemp("families") / "lab")

    @functools.cache
    def run(family: str):
        model = tiny.model_of(family)
        found = sites.discover(model)
        run_id = capture.capture_one(scenario_for(), loaded(model), found, lake)
        with catalog.connect(lake) as db:
            return model, found, read(db, run_id)

    return run


def read(db, run_id: str) -> dict:
    """Everything of a run as arrays: per (layer, site) a (tokens, width) array, and the rest by name."""
    result: dict = {"ids": [r[0] for r in db.execute(
        "select token_id from tokens where run_id = ? and step is not null order by position", [run_id],
    ).fetchall()]}  # fmt: skip
    rows = db.execute("from activations_of(?) order by layer, position", [run_id])
    names = [column[0] for column in rows.description]
    for row in rows.fetchall():
        values = dict(zip(names, row, strict=True))
        for site in ("hidden_in", "hidden_out", "q", "k", "v", "attn_out", "mlp_gate", "mlp_up", "mlp_down_in",
                     "mlp_down_out"):  # fmt: skip
            if values[site] is not None:
                result.setdefault((values["layer"], site), []).append(values[site])
    result = {
        key: np.array(value, "f4") if isinstance(key, tuple) else value
        for key, value in result.items()
    }
    result["attention"] = db.execute("from attention_of(?)", [run_id]).fetchall()
    outputs = db.execute(
        "select logits, embeddings from outputs_of(?) order by position", [run_id]
    ).fetchall()
    result["logits"] = np.array([row[0] for row in outputs], "f4")
    result["embeddings"] = np.array([row[1] for row in outputs], "f4")
    result["absent"] = {
        row[0]
        for row in db.execute(
            "select site from sites where run_id = ? and reason is not null", [run_id]
        ).fetchall()
    }
    result["residual"] = [r[0] for r in db.execute(
        "select residual_error from layers where run_id = ? order by layer", [run_id]).fetchall()]  # fmt: skip
    result["continuity"] = db.execute(
        "select continuity_error, changed from layers where run_id = ?", [run_id]).fetchall()  # fmt: skip
    result["prompt_length"] = db.execute(
        "select n_prompt_tokens from prompts where run_id = ?", [run_id]
    ).fetchone()[0]
    return result


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sites_are_found(captured, family):
    _, _, data = captured(family)
    assert data["absent"] == ABSENT.get(family, set())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_the_bare_models(captured, family):
    """The same passes without any hook give the same logits, bit for bit."""
    model, _, data = captured(family)
    n = data["prompt_length"]
    with torch.inference_mode():
        output = model(torch.tensor([data["ids"][:n]]), use_cache=True)
        logits = [output.logits[0]]
        for token in data["ids"][n:]:
            output = model(
                torch.tensor([[token]]),
                use_cache=True,
                **{limits.cache_name(model): limits.cache_in(output)},
            )
            logits.append(output.logits[0])
    bare = torch.cat(logits).numpy()
    assert len(bare) == n + NEW_TOKENS - 1
    assert np.array_equal(bare, data["logits"])
    generated = [int(row.argmax()) for row in bare[n - 1 :]]
    assert generated[:-1] == data["ids"][n:]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_residual_stream_adds_up(captured, family):
    _, found, data = captured(family)
    for layer in range(len(found.layers)):
        before, after = data[layer, "hidden_in"], data[layer, "hidden_out"]
        if layer:
            assert np.array_equal(before, data[layer - 1, "hidden_out"])
        if "attn_out" in ABSENT.get(family, set()):
            assert data["residual"][layer] is None
            continue
        added = [data[layer, "attn_out"], data[layer, "mlp_down_out"]]
        errors = np.abs(after - before - added[0] - added[1]).max(
            1
        )  # of each token, relative to its largest value
        relative = (errors / np.abs(np.stack([after, *added])).max((0, 2))).max()
        assert relative <= 1e-6
        assert data["residual"][layer] == pytest.approx(relative, rel=1e-3, abs=1e-9)
        assert np.abs(data[layer, "attn_out"]).max() > 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_a_layer_gives_is_what_is_read_next(captured, family):
    """Of every layer, the last one too, which the final norm reads; nothing changed it on the way."""
    _, found, data = captured(family)
    assert data["continuity"] == [(0.0, 0.0)] * len(found.layers)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attention_rows_are_distributions(captured, family):
    _, found, data = captured(family)
    with_weights = [n for n, layer in enumerate(found.layers) if layer.attention]
    length = len(data["ids"])
    model = tiny.model_of(family)
    heads = model.config.num_attention_heads
    assert len(data["attention"]) == len(with_weights) * heads * length
    for *_, position, weights in data["attention"]:
        assert len(weights) == position + 1
        if family == "gpt_oss":  # its sink takes the rest
            assert 0 < sum(weights) < 1
        else:
            assert sum(weights) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keys_and_values_are_those_the_model_caches(captured, family):
    """Every token's v is what the cache holds; k too where no rotation and no norm stands between."""
    model, found, data = captured(family)
    with torch.inference_mode():
        cache = limits.cache_in(model(torch.tensor([data["ids"]]), use_cache=True))
    for layer in range(len(found.layers)):
        if (layer, "v") not in data:
            continue
        cached = cache.layers[layer]
        every = (
            2 if family == "falcon:new" else 1
        )  # it caches each key and value for all heads that share it
        keys, values = (
            t[0, ::every].transpose(0, 1).flatten(1).numpy() for t in (cached.keys, cached.values)
        )
        assert np.allclose(data[layer, "v"], values, rtol=1e-4, atol=1e-5)
        assert data[layer, "k"].shape == keys.shape
        if family not in (
            "qwen3",
            "qwen3_moe",
            "qwen3_next",
            "gemma3_text",
            "olmo2",
            "ernie4_5",
            "stablelm",
        ):
            # Rotary embeddings keep the length of what they turn, and turn position 0 by nothing.
            heads = cached.keys.shape[1] // every
            lengths = [
                np.linalg.norm(k.reshape(len(k), heads, -1), axis=-1)
                for k in (data[layer, "k"], keys)
            ]
            if family != "gpt_oss":  # its rotation also scales
                assert np.allclose(lengths[0], lengths[1], rtol=1e-4)
                assert np.allclose(data[layer, "k"][0], keys[0], atol=1e-6)


#: How each fused family's own code takes its projection apart: (tokens, width) → q, k, v.
FUSED = {
    "gpt2": ("attn.c_attn", lambda x, n, d: x.chunk(3, -1)),
    "mpt": ("attn.Wqkv", lambda x, n, d: x.chunk(3, -1)),
    **dict.fromkeys(
        ("phi3", "phi3:longrope"), ("self_attn.qkv_proj", lambda x, n, d: x.split([n * d, 2 * d, 2 * d], -1))
    ),
    "gpt_neox": ("attention.query_key_value", lambda x, n, d: [p.flatten(1) for p in x.view(-1, n, 3, d).unbind(2)]),
    "bloom": ("self_attention.query_key_value", lambda x, n, d: [p.flatten(1) for p in x.view(-1, n, 3, d).unbind(2)]),
    "falcon": ("self_attention.query_key_value", lambda x, n, d: x.split([n * d, d, d], -1)),
    "falcon:alibi": ("self_attention.query_key_value",
                     lambda x, n, d: [p.flatten(1) for p in x.view(-1, n, 3, d).unbind(2)]),
    "falcon:new": ("self_attention.query_key_value", lambda x, n, d: [
        x.view(-1, 2, n // 2 + 2, d)[:, :, part].flatten(1) for part in (slice(0, n // 2), n // 2, n // 2 + 1)]),
    "gpt_bigcode": ("attn.c_attn", lambda x, n, d: x.split([n * d, d, d], -1)),
    "codegen": ("attn.qkv_proj", lambda x, n, d: [
        x.view(-1, 4, 3, n * d // 4)[:, :, part].flatten(1) for part in (0, 2, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_projections_are_the_models_own(captured, family):
    model, found, data = captured(family)
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: outputs.__setitem__(name, out))
        for name, module in model.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]  # fmt: skip
    n = data["prompt_length"]
    with torch.inference_mode():
        model(torch.tensor([data["ids"][:n]]), use_cache=False)
    for handle in handles:
        handle.remove()
    heads, size = (
        model.config.num_attention_heads,
        model.config.hidden_size // model.config.num_attention_heads,
    )
    for index, layer in enumerate(found.layers):
        if (index, "q") not in data:
            continue
        if family in FUSED:
            path, take_apart = FUSED[family]
            expected = dict(
                zip(
                    "qkv",
                    take_apart(outputs[f"{layer.module}.{path}"][0], heads, size),
                    strict=True,
                )
            )
        else:
            expected = {
                s: next(
                    o[0]
                    for name, o in outputs.items()
                    if name.startswith(layer.module + ".") and name.endswith(f".{s}_proj")
                )
                for s in "qkv"
            }
        for site, tensor in expected.items():
            assert np.array_equal(tensor.numpy(), data[index, site][:n]), (index, site)


@pytest.mark.parametrize(
    "family", [f for f in tiny.FAMILIES if not {"mlp_gate", "mlp_down_in"} & ABSENT.get(f, set())]
)
def test_gate_and_up_make_the_input_of_the_down_projection(captured, family):
    model, found, data = captured(family)
    from transformers.activations import ACT2FN

    name = getattr(model.config, "hidden_activation", None) or model.config.hidden_act
    for layer in range(len(found.layers)):
        gate, up = (torch.from_numpy(data[layer, site]) for site in ("mlp_gate", "mlp_up"))
        assert np.allclose(ACT2FN[name](gate) * up, data[layer, "mlp_down_in"], atol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_embeddings_are_the_token_embeddings(captured, family):
    model, _, data = captured(family)
    with torch.inference_mode():
        expected = model.get_input_embeddings()(torch.tensor(data["ids"])).numpy()
    assert np.array_equal(expected, data["embeddings"])


def family_table() -> str:
    """The README's table: what alab captures of each family, as the tests above check it."""
    columns = {
        "residual": {"attn_out", "mlp_down_out"}, "q k v": set("qkv"), "gate": {"mlp_gate"}, "up": {"mlp_up"},
        "down in": {"mlp_down_in"}, "attention": {"attention"},
    }  # fmt: skip
    lines = ["| family | " + " | ".join([*columns, "mixes positions", "does not"]) + " |",
             "| --- |" + " :-: |" * len(columns) + " --- | --- |"]  # fmt: skip
    for family in sorted(tiny.FAMILIES):
        last = sites.discover(tiny.model_of(family), sharing=False).layers[-1]
        blocks = [last.ports.get(site) for site in ("attn_out", "mlp_down_out")]
        names = [
            f"`{port.module.removeprefix(last.module + '.')}`{port.part}" if port else "–"
            for port in blocks
        ]
        absent = ABSENT.get(family, frozenset())
        partly = (
            family == "qwen3_next"
        )  # its full-attention layers have them, its linear ones have not
        marks = [
            "some layers" if partly and c == "attention" else "–" if sites & absent else "✓"
            for c, sites in columns.items()
        ]
        lines.append(f"| {family} | " + " | ".join([*marks, *names]) + " |")
    return "\n".join(lines)


def test_the_readme_has_this_table():
    """Print it with: python tests/test_families.py"""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert family_table() in readme


if __name__ == "__main__":
    sys.stdout.write(family_table() + "\n")
