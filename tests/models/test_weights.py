"""A model runs with the weights of its checkpoint, all of them, or not at all."""

import json
import logging
import shutil

import captures
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.errors import AlabError
from warehouse.models import loading as models
from warehouse.models import notices as messages
from warehouse.models import sites, weights


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A whole checkpoint of a tiny llama."""
    folder = tmp_path_factory.mktemp("full") / "full"
    tiny.model_of("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def variant(full, to, change=lambda weights: weights, **config):
    """A copy of the checkpoint with changed weights and config."""
    shutil.copytree(full, to)
    weights = change(load_file(full / "model.safetensors"))
    save_file(
        {name: w.contiguous() for name, w in weights.items()},
        to / "model.safetensors",
        {"format": "pt"},
    )
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def load(folder, **more) -> models.Loaded:
    return models.load(scenario.Model(id=str(folder), dtype="float32", device="cpu", **more))


def without(*parts):
    return lambda weights: {
        name: w for name, w in weights.items() if not any(part in name for part in parts)
    }


def with_(**more):
    return lambda weights: (
        weights | {name.replace("__", "."): value for name, value in more.items()}
    )


def test_a_whole_checkpoint_is_loaded_without_a_word(full):
    loaded = load(full)
    assert loaded.notes == []
    for name, value in tiny.model_of("llama").named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), value)


@pytest.mark.parametrize(("change", "config", "expected"), [
    (without("layers.1."), {}, r"lacks 9 of the 30 weights of LlamaForCausalLM: model.layers.1.input_layernorm.weight, "),
    (without("model.norm."), {}, r"lacks 1 of the 30 weights of LlamaForCausalLM: model.norm.weight\n"),
    (without("layers.2.mlp.up"), {}, r"lacks 1 of the 30 .*model.layers.2.mlp.up_proj.weight"),
    (without("lm_head"), {}, r"lacks 1 of the 30 .*lm_head.weight"),
    (lambda w: {f"module.{k}": v for k, v in w.items()}, {},
     r"(?s)lacks 30 of the 30 .*; 30 that it has fit nowhere: module.lm_head.weight, .*begin with 'module.'"),
    (lambda w: {k.replace("mlp.", "feed."): v for k, v in w.items()}, {}, r"lacks 9 .*; 9 that it has fit nowhere"),
    (lambda w: w | {"lm_head.weight": w["lm_head.weight"][:-4]}, {},
     r"1 of the weights .* another shape than its config says: lm_head.weight \(lm_head.weight is 296 × 32, not 300 × 32\)"),
    (lambda w: w, {"intermediate_size": 64}, r"9 of the weights .* another shape .*and 5 more"),
    (lambda w: w, {"num_hidden_layers": 4}, r"lacks 9 of the 39 weights .*model.layers.3.input_layernorm.weight"),
    (lambda w: w, {"attention_bias": True}, r"lacks 12 of the 42 weights .*model.layers.0.self_attn.k_proj.bias"),
    (without("embed_tokens", "lm_head"), {"tie_word_embeddings": True}, r"lacks \d of the 30 .*model.embed_tokens.weight"),
])  # fmt: skip
def test_weights_that_are_not_there_are_refused(full, tmp_path, change, config, expected):
    with pytest.raises(AlabError, match=expected):
        load(variant(full, tmp_path / "m", change, **config))


def test_a_classifier_is_refused(tmp_path):
    LlamaForSequenceClassification(tiny.config_of("llama")).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        AlabError,
        match=r"(?s)lacks 1 .*lm_head.weight; 1 that it has fit nowhere: score.w.*classifier",
    ):
        load(tmp_path)


def test_tied_weights_are_not_missing(full, tmp_path):
    """By either name."""
    for lacking in ("lm_head", "embed_tokens"):
        loaded = load(variant(full, tmp_path / lacking, without(lacking), tie_word_embeddings=True))
        assert loaded.notes == []
        assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_tied_weights_that_differ_are_told(full, tmp_path):
    loaded = load(variant(full, tmp_path / "m", tie_word_embeddings=True))
    assert [code for code, _ in loaded.notes] == ["tied_weights"]
    assert torch.equal(loaded.model.lm_head.weight, tiny.model_of("llama").lm_head.weight)


@pytest.mark.parametrize(("change", "config", "expected"), [
    (with_(score__weight=torch.ones(1, 32)), {}, "1 weights of the checkpoint fit nowhere in LlamaForCausalLM and "
     "were left out: score.weight"),
    (lambda w: w, {"num_hidden_layers": 2}, "9 weights .*: model.layers.2.input_layernorm.weight, .* and 5 more"),
    (with_(**{f"model__layers__{n}__self_attn__q_proj__bias": torch.ones(32) for n in range(3)}), {}, "3 weights .*bias"),
])  # fmt: skip
def test_weights_that_fit_nowhere_are_told(full, tmp_path, change, config, expected):
    import re

    ((code, message),) = load(variant(full, tmp_path / "m", change, **config)).notes
    assert code == "unexpected_weights"
    assert re.match(expected, message)


def test_a_shard_that_is_not_there(full, tmp_path):
    tiny.model_of("llama").save_pretrained(tmp_path / "m", max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    assert load(tmp_path / "m").notes == []
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(AlabError, match=rf"cannot load the model from .*{shards[1].name}"):
        load(tmp_path / "m")


class Computed(type(tiny.model_of("llama"))):
    """A llama with persistent buffers: one that its code computes, one that it draws."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("ramp", torch.arange(4.0))
        self.register_buffer("drawn", torch.randn(4))


def test_buffers_that_are_computed_are_not_missing():
    model = Computed(tiny.config_of("llama"))
    report = {"missing_keys": {"ramp"}, "unexpected_keys": set(), "mismatched_keys": set()}
    assert weights.check(model, report, "here") == []
    model.ramp[2] = 7  # what is left where nothing was loaded and nothing computed
    with pytest.raises(AlabError, match=r"lacks 1 of the .*: ramp"):
        weights.check(model, report, "here")
    with pytest.raises(AlabError, match=r"lacks 1 of the .*: drawn"):
        weights.check(model, report | {"missing_keys": {"drawn"}}, "here")


class Quiet(type(tiny.model_of("llama"))):
    _keys_to_ignore_on_load_missing = [r"layers\.1\.mlp"]  # noqa: RUF012


def test_a_class_that_keeps_quiet_about_missing_weights(full, tmp_path):
    """As transformers lets its classes do."""
    folder = variant(full, tmp_path / "m", without("layers.1.mlp"))
    _, report = Quiet.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    model, report = weights.load_strictly(Quiet, folder)
    with pytest.raises(
        AlabError, match=r"lacks 3 of the 30 weights of Quiet: model.layers.1.mlp.down_proj.weight"
    ):
        weights.check(model, report, "here")
    model, report = weights.load_strictly(Quiet, full)
    assert weights.check(model, report, "here") == []
    assert Quiet._keys_to_ignore_on_load_missing == [r"layers\.1\.mlp"]


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings(full, tmp_path):
    tokenizer = tiny.tokenizer.__wrapped__()
    tokenizer.add_tokens([f"<new{n}>" for n in range(45)])
    highest = max(tokenizer.get_vocab().values())
    tokenizer.save_pretrained(variant(full, tmp_path / "m"))
    loaded = load(tmp_path / "m")
    ((code, message),) = loaded.notes
    assert code == "vocabulary"
    assert (
        f"the tokenizer has {highest - 299} tokens beyond the model's 300 embeddings: " in message
    )
    weights.check_ids([0, 299], loaded.model, "prompt")
    with pytest.raises(
        AlabError,
        match="prompt: the tokenizer gives the token 300; the model has embeddings of 0 to 299",
    ):
        weights.check_ids([3, 300], loaded.model, "prompt")


def test_a_model_without_a_tokenizer(tmp_path):
    tiny.model_of("llama").save_pretrained(tmp_path)
    with pytest.raises(AlabError, match="has no tokenizer that can be read"):
        load(tmp_path)


def test_what_transformers_warns_of_is_told_each_time(full, tmp_path):
    """Though transformers says some things once in a process, and alab keeps it off the terminal."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "spiral": 3}
    folder = variant(full, tmp_path / "m", rope_parameters=rope)
    for _ in range(2):
        notes = load(folder).notes
        assert [code for code, _ in notes] == ["library"]
        assert "spiral" in notes[0][1]


def test_advice_is_not_told():
    said = [
        "`torch_dtype` is deprecated! Use `dtype` instead!",
        "The fast path is not available",
        "Odd  numbers\nhere",
    ]
    assert messages.notes(said) == [("library", "on loading, transformers said: Odd numbers here")]


def test_what_transformers_warns_of_during_passes_is_told(lake, llama):
    """And by none of the next run's rows."""
    loaded, found = llama
    logger = logging.getLogger("transformers.models.llama")
    handle = loaded.model.model.register_forward_pre_hook(
        lambda *_: logger.warning("the mask\nis ignored")
    )
    run = capture.capture_one(captures.make_scenario(), loaded, found, lake)
    handle.remove()
    other = capture.capture_one(captures.make_scenario(), loaded, found, lake)
    query = "SELECT code, message FROM warnings WHERE run_id = ? AND code = 'library'"
    assert captures.rows(lake, query, run) == [
        ("library", "while it ran, transformers said: the mask is ignored")
    ]
    assert captures.rows(lake, query, other) == []


def test_a_prompt_with_ids_beyond_the_embeddings_is_refused(full, tmp_path, lake):
    tokenizer = tiny.tokenizer.__wrapped__()
    tokenizer.add_tokens([f"<new{n}>" for n in range(45)])
    tokenizer.save_pretrained(variant(full, tmp_path / "m"))
    loaded = load(tmp_path / "m")
    found = sites.discover(loaded.model)
    for content, whole in (("Hello", True), ("<new0>", True), ("Hello <new44>", False)):
        wanted = captures.make_scenario(prompt={"messages": [{"role": "user", "content": content}]})
        if whole:
            capture.capture_one(wanted, loaded, found, lake)
            continue
        with pytest.raises(AlabError, match="prompt: the tokenizer gives the token 3"):
            capture.capture_one(wanted, loaded, found, lake)
