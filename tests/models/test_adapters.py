"""`model.adapter`: an adapter is put on whole, on the model that it is for, and is part of the fingerprint."""

import json
import sys

import captures
import pytest
import tiny
import torch

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.capture import scenarios
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lens import lens
from warehouse.models import loading as models
from warehouse.models import sites
from warehouse.models.fingerprint import fingerprint

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    tiny.model_of("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def bare(base):
    return models.load(scenario.Model(id=str(base), dtype="float32", device="cpu")).model


def lora(base, to, config=None, seed: int = 1):
    """Save an adapter of which no weight is zero; gives the model with it on."""
    config = config or peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"]
    )
    model = peft.get_peft_model(bare(base), config).eval()
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(0, 0.3, generator=draw)
    model.save_pretrained(to)
    return model


def load(base, adapter, **more) -> models.Loaded:
    return models.load(
        scenario.Model(id=str(base), dtype="float32", device="cpu", adapter=str(adapter), **more)
    )


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("config", [
    {"target_modules": ["q_proj", "down_proj"]},
    {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["o_proj", "embed_tokens"], "use_dora": False, "use_rslora": True},
])  # fmt: skip
def test_an_adapter_is_put_on_and_recorded(base, tmp_path, lake, config):
    theirs = lora(base, tmp_path / "a", peft.LoraConfig(task_type="CAUSAL_LM", r=4, **config))
    loaded = load(base, tmp_path / "a")
    assert loaded.notes == []
    assert torch.equal(logits(loaded.model), logits(theirs))
    assert not torch.equal(logits(loaded.model), logits(bare(base)))
    run = capture.capture_one(captures.make_scenario(), loaded, sites.discover(loaded.model), lake)
    with catalog.connect(lake) as db:
        row = db.execute(
            "SELECT adapter, weights_hash FROM runs WHERE run_id = ?", [run]
        ).fetchone()
    assert row == (str(tmp_path / "a"), fingerprint(theirs))


def test_the_fingerprint_knows_what_is_switched_on(base, tmp_path):
    plain = fingerprint(bare(base))
    model = lora(base, tmp_path / "a")
    one = fingerprint(model)
    assert one == fingerprint(model.get_base_model()) != plain
    model.load_adapter(str(tmp_path / "a"), adapter_name="other")
    assert fingerprint(model) == one  # loaded, not switched on
    model.set_adapter("other")
    assert fingerprint(model) == one  # the same under another name
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["other"] *= 2
    assert fingerprint(model) not in (one, plain)
    with model.disable_adapter():
        assert fingerprint(model) == plain
    model.set_adapter("default")
    merged = fingerprint(model.merge_and_unload())
    assert merged not in (one, plain)


def edited(folder, change):
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def configured(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(("harm", "expected"), [
    (lambda a: edited(a, lambda w: {k: v for k, v in w.items() if "layers.1" not in k}),
     r"lacks 4 of the 12 weights that its config asks for: base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"),
    (lambda a: edited(a, lambda w: w | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}),
     r"1 of the 13 weights of .* fit nowhere in the model: base_model.model.model.layers.9"),
    (lambda a: configured(a, r=8), "does not fit"),
    (lambda a: configured(a, target_modules=["query_key_value"]), "does not fit"),
    (lambda a: configured(a, task_type="SEQ_CLS"), "is LORA for SEQ_CLS; alab puts on adapters of a causal"),
    (lambda a: (a / "adapter_model.safetensors").write_bytes(b"\0" * 50), "does not fit"),
    (lambda a: (a / "adapter_model.safetensors").unlink(), "does not fit|cannot"),
    (lambda a: (a / "adapter_config.json").write_text("{"), "cannot read the adapter"),
    (lambda a: (a / "adapter_config.json").unlink(), "cannot read the adapter"),
])  # fmt: skip
def test_adapters_that_are_not_whole_or_not_for_the_model(
    base, tmp_path, monkeypatch, harm, expected
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lora(base, tmp_path / "a")
    harm(tmp_path / "a")
    with pytest.raises(AlabError, match=expected) as caught:
        load(base, tmp_path / "a")
    assert str(caught.value).startswith("model.adapter: ")


def test_an_adapter_of_another_base_is_told(base, tmp_path):
    lora(base, tmp_path / "a")
    configured(tmp_path / "a", base_model_name_or_path="some/other")
    ((code, message),) = load(base, tmp_path / "a").notes
    assert code == "adapter_base"
    assert "was made for some/other; it was put on" in message


def test_virtual_tokens_are_refused(base, tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(bare(base), config).save_pretrained(tmp_path / "a")
    with pytest.raises(AlabError, match="is PROMPT_TUNING for CAUSAL_LM"):
        load(base, tmp_path / "a")


def test_an_adapter_that_is_named_as_a_model(base, tmp_path):
    """Alone in its directory, or beside weights that transformers would leave for those of the adapter's base."""
    lora(base, tmp_path / "a")
    for _ in range(2):
        with pytest.raises(
            AlabError, match=r"(?s)model.id: .* holds an adapter of .*Name both:  model: \{id: "
        ):
            models.load(scenario.Model(id=str(tmp_path / "a")))
        tiny.model_of("llama").save_pretrained(tmp_path / "a")
    with pytest.raises(AlabError, match=r"there is no directory ./nowhere"):
        load(base, "./nowhere")


def test_without_the_package(base, tmp_path, monkeypatch):
    lora(base, tmp_path / "a")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AlabError, match=r"(?s)needs the package peft.*pip install 'alab\[peft\]'"):
        load(base, tmp_path / "a")


@pytest.mark.parametrize("config", [
    {"target_modules": ["q_proj", "down_proj"]},
    {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_the_lens_loads_the_adapter_that_ran(base, tmp_path, lake, config):
    theirs = lora(base, tmp_path / "a", peft.LoraConfig(task_type="CAUSAL_LM", r=4, **config))
    wanted = captures.make_scenario(model={"id": str(base), "adapter": str(tmp_path / "a")})
    (run,) = scenarios.capture([wanted], [lake])
    lens.logit_lens(lake, run)
    ((vector,),) = captures.rows(
        lake, "SELECT vector FROM unembedding_of('latest') WHERE token_id = 9"
    )
    head = theirs.get_base_model().lm_head
    saved = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    assert vector == saved.weight[9].tolist()
    lora(base, tmp_path / "a", peft.LoraConfig(task_type="CAUSAL_LM", r=4, **config), seed=2)
    (other,) = scenarios.capture([wanted], [lake])
    lens.logit_lens(lake, other)
    assert len(lake.models()) == 2
    with pytest.raises(AlabError, match="has other weights"):
        lens.logit_lens(lake, run, model=load(base, tmp_path / "a"))


def test_an_adapter_on_the_head_itself_has_no_lens(base, tmp_path, lake):
    """The logits are more than one unembedding's: shown by numbers, and refused."""
    lora(
        base,
        tmp_path / "a",
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"]),
    )
    loaded = load(base, tmp_path / "a")
    run = capture.capture_one(captures.make_scenario(), loaded, sites.discover(loaded.model), lake)
    with pytest.raises(AlabError, match="no logit lens"):
        lens.logit_lens(lake, run, model=loaded)
