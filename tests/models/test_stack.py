"""What may be captured, and which modules are its layers: told by numbers, whatever a config or a name says."""

import copy

import numpy as np
import pytest
import tiny
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import warehouse
import warehouse.catalog.check
from warehouse.errors import AlabError
from warehouse.models import sites

SMALL = {key: value for key, value in tiny._COMMON.items() if value is not None}
IDS = torch.tensor([[5, 9, 12, 7]])


def of_class(name: str, config) -> nn.Module:
    torch.manual_seed(0)
    return (
        getattr(transformers, name)
        ._from_config(config, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )


def of_kind(kind: str, **own) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | own)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def looping() -> nn.Module:
    """A llama whose second layer runs twice, as in models that loop."""
    model = copy.deepcopy(tiny.model_of("llama"))
    layer = model.model.layers[1]
    once = layer.forward
    model.model.layers[2].register_forward_pre_hook(
        lambda module, args, kwargs: ((layer(args[0], **kwargs), *args[1:]), kwargs),
        with_kwargs=True,
    )
    assert layer.forward == once
    return model


def shared_layer() -> nn.Module:
    """A llama that uses one layer three times, as ALBERT does."""
    model = copy.deepcopy(tiny.model_of("llama"))
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 3)
    return model


def two_streams() -> nn.Module:
    """A llama whose head reads a second stream beside the layers."""
    model = copy.deepcopy(tiny.model_of("llama"))
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda m, a, out: seen.append(out))
    model.model.norm.register_forward_pre_hook(lambda m, args: (args[0] + seen.pop(),))
    return model


def skipping() -> nn.Module:
    """A llama one of whose layers does not run."""
    model = copy.deepcopy(tiny.model_of("llama"))
    model.model.config.num_hidden_layers = 2
    return model


def encoder_classes():
    t5 = transformers.T5Config(
        vocab_size=300,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
    )
    bart = transformers.BartConfig(
        vocab_size=300, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128,
    )  # fmt: skip
    return of_class("T5ForConditionalGeneration", t5), of_class(
        "BartForConditionalGeneration", bart
    )


REFUSED = {
    "T5": (lambda: encoder_classes()[0], "an encoder with a decoder"),
    "BART": (lambda: encoder_classes()[1], "an encoder with a decoder"),
    "headless": (lambda: of_class("LlamaModel", tiny.config_of("llama")), "gives no logits"),
    "classifier": (lambda: of_class("LlamaForSequenceClassification", tiny.config_of("llama")), "its logits are shaped"),
    "token classifier": (lambda: of_class("LlamaForTokenClassification", tiny.config_of("llama")), "over 2 classes"),
    "BERT, which looks both ways": (lambda: of_kind("bert"), "a later token changes"),
    "ELECTRA": (lambda: of_kind("electra", embedding_size=32), "a later token changes"),
    "XLM, whose lists are parts of layers": (
        lambda: of_kind("xlm", emb_dim=32, n_layers=3, n_heads=4, causal=True), "does not read what"
    ),
    "a layer that runs twice": (looping, "runs 2 times"),
    "one layer in three places": (shared_layer, "runs 3 times"),
    "a layer that does not run": (skipping, "does not run"),
    "a head that reads more than the last layer": (two_streams, "does not come through"),
    "no attention": (lambda: of_kind("mamba", state_size=4, num_attention_heads=0), "no attention"),
    "no model": (lambda: nn.Linear(2, 2), "no model of transformers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_in_one_line(tmp_path, name):
    make, reason = REFUSED[name]
    model = make()
    with pytest.raises(AlabError, match=reason):
        warehouse.record(
            model, tiny.tokenizer(), [{"role": "user", "content": "Hi"}], warehouse=tmp_path
        )
    with (
        pytest.raises(AlabError, match=reason),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        raise AssertionError("the block must not be entered")
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("tokenizer", [None, "a name"])
def test_a_tokenizer_is_needed(tmp_path, tokenizer):
    with pytest.raises(AlabError, match="the tokenizer is"):
        warehouse.record(
            tiny.model_of("llama"),
            tokenizer,
            [{"role": "user", "content": "Hi"}],
            warehouse=tmp_path,
        )
    with pytest.raises(AlabError, match="the tokenizer is"), warehouse.recording(
        tiny.model_of("llama"), tokenizer, warehouse=tmp_path
    ):  # fmt: skip
        raise AssertionError("the block must not be entered")


def audio(layers: int) -> nn.Module:
    """A language model of three layers beside an audio tower."""
    config = transformers.Qwen2AudioConfig(
        text_config={"model_type": "qwen2", **SMALL}, audio_token_index=290,
        audio_config={
            "model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": layers, "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48, "num_mel_bins": 16, "max_source_positions": 50,
        },
    )  # fmt: skip
    return of_class("Qwen2AudioForConditionalGeneration", config)


def vision(layers: int) -> nn.Module:
    """A language model of three layers beside a vision tower."""
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **SMALL}, image_token_index=290,
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "image_size": 16, "patch_size": 8, "projection_dim": 32,
        },
    )  # fmt: skip
    return of_class("LlavaForConditionalGeneration", config)


@pytest.mark.parametrize("tower", [audio, vision])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_layers_are_the_language_models(tmp_path, tower, depth):
    model = tower(depth)
    found = sites.discover(model)
    assert [layer.module for layer in found.layers] == [
        f"model.language_model.layers.{n}" for n in range(3)
    ]  # fmt: skip
    run = warehouse.record(model, tiny.tokenizer(), [{"role": "user", "content": "Hi"}], warehouse=tmp_path,
                           generation={"max_new_tokens": 2}, capture={"store_dtype": "float32"})  # fmt: skip
    lab = warehouse.open(tmp_path)
    ids = [
        i
        for (i,) in lab.sql(
            "SELECT token_id FROM tokens WHERE step = 0 ORDER BY position"
        ).fetchall()
    ]
    with torch.no_grad():
        expected = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    np.testing.assert_allclose(lab.tensor(run, "hidden_out", layer=0), expected, atol=1e-5)


def test_a_config_that_counts_other_layers_changes_nothing():
    model = copy.deepcopy(tiny.model_of("llama"))
    model.model.extra = nn.ModuleList(
        [nn.Linear(32, 32) for _ in range(7)]
    )  # such as heads for more tokens at once
    model.config.num_nextn_predict_layers = 7
    assert [layer.module for layer in sites.discover(model).layers] == [
        f"model.layers.{n}" for n in range(3)
    ]


def opt_350m() -> nn.Module:
    """An OPT whose embeddings are narrower than its layers."""
    own = {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    return of_kind("opt", **own)


def padded_head() -> nn.Module:
    model = copy.deepcopy(tiny.model_of("llama"))
    model.lm_head = nn.Linear(32, 384, bias=False)
    return model


@pytest.mark.parametrize(("make", "widths"), [(opt_350m, (16, 300)), (padded_head, (32, 384))])
def test_widths_are_those_of_the_tensors(tmp_path, make, widths):
    model = make()
    found = sites.discover(model)
    assert (found.embedding_width, found.vocabulary) == widths
    with warehouse.recording(
        model, tiny.tokenizer(), warehouse=tmp_path, capture={"store_dtype": "float32"}
    ) as kept:
        logits = model(IDS).logits[0].detach()
    lab = warehouse.open(tmp_path)
    assert lab.tensor(kept.run_id, "embeddings").shape == (4, widths[0])
    np.testing.assert_array_equal(lab.tensor(kept.run_id, "logits"), logits)
    assert lab.sql("SELECT vocab_size FROM runs").fetchall() == [(widths[1],)]
    declared = lab.sql("SELECT site, width FROM sites WHERE layer IS NULL ORDER BY site").fetchall()
    assert declared == [("embeddings", widths[0]), ("logits", widths[1])]
    assert warehouse.catalog.check.check(lab._lake, deep=True) == []


def test_a_token_that_the_model_does_not_embed_is_refused(tmp_path):
    """A padded head whose padding wins."""
    model = padded_head()
    model.lm_head.weight.data[310] = 100 * model.lm_head.weight.data[3]
    model.lm_head.weight.data[311] = -model.lm_head.weight.data[310]
    with pytest.raises(
        AlabError, match=r"token 31[01] cannot be read: the model embeds 300 tokens"
    ):
        warehouse.record(
            model, tiny.tokenizer(), [{"role": "user", "content": "Hi"}], warehouse=tmp_path
        )
    assert warehouse.open(tmp_path).runs().fetchall() == []


def test_a_module_that_is_replaced_is_said(tmp_path):
    """Another module in the place of one that was probed: its site is NULL from there on, and not another's."""
    model = copy.deepcopy(tiny.model_of("llama"))
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept, torch.no_grad():
        model(IDS)
        model.model.layers[1].mlp.up_proj = nn.Linear(32, 48, bias=False)
        model(IDS)
    lab = warehouse.open(tmp_path)
    missing = "SELECT prompt_id, layer, count(*) FROM activations WHERE mlp_up IS NULL GROUP BY ALL"
    assert lab.sql(missing).fetchall() == [(1, 1, 4)]
    said = dict(
        lab.sql(
            "SELECT code, message FROM warnings WHERE run_id = $run", run=kept.run_id
        ).fetchall()
    )
    assert (
        said["missing_rows"] == "mlp_up of layer 1 was not computed in 1 passes; it is NULL there"
    )
    assert "model_changed" in said


def test_a_layer_that_begins_to_loop_is_refused(tmp_path):
    """A pass that runs a layer twice, after a probe that did not."""
    model = copy.deepcopy(tiny.model_of("llama"))
    with (
        pytest.raises(AlabError, match="layer 1 runs twice"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
        torch.no_grad(),
    ):
        layer = model.model.layers[1]
        model.model.layers[2].register_forward_pre_hook(
            lambda module, args, kwargs: ((layer(args[0], **kwargs), *args[1:]), kwargs),
            with_kwargs=True,
        )
        model(IDS)


def test_a_module_that_begins_to_run_twice_is_refused(tmp_path):
    model = copy.deepcopy(tiny.model_of("llama"))
    with (
        pytest.raises(AlabError, match=r"model.layers.1.mlp.up_proj runs twice in layer 1"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
        torch.no_grad(),
    ):
        mlp = model.model.layers[1].mlp
        mlp.register_forward_hook(
            lambda module, args, output: mlp.down_proj(torch.tanh(mlp.up_proj(args[0])))
        )
        model(IDS)


def test_a_layer_that_is_left_out_is_refused(tmp_path):
    model = copy.deepcopy(tiny.model_of("llama"))
    with (
        pytest.raises(AlabError, match="layer 2 did not run"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
        torch.no_grad(),
    ):
        model.model.config.num_hidden_layers = 2
        model(IDS)
