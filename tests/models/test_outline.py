"""`alab layers`: a stand-in finds what the model itself does."""

import json

import pytest
import tiny
from click.testing import CliRunner

from warehouse.cli.commands import main
from warehouse.models import outline as layers
from warehouse.models import sites


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gpt2", "gpt_neox", "phi3", "mixtral", "qwen3_next"]
)
def test_a_stand_in_has_the_sites_of_the_model(family):
    found = sites.discover(layers.stand_in(tiny.config_of(family)))
    expected = sites.discover(tiny.model_of(family))
    kinds = {tuple(layer.ports) for layer in expected.layers}
    assert {tuple(layer.ports) for layer in found.layers} == kinds
    for ours, theirs in zip(found.layers, expected.layers, strict=False):
        assert list(map(str, ours.ports.values())) == list(map(str, theirs.ports.values()))


@pytest.mark.parametrize("flags", [[], ["--run-probe"]])
def test_the_command(tmp_path, flags):
    tiny.model_of("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    result = CliRunner().invoke(main, ["layers", str(tmp_path), *flags])
    assert result.exit_code == 0, result.output
    assert "LlamaForCausalLM, 3 layers × 32, 4 heads, vocabulary 300" in result.output
    assert "mlp_down_in = input (48)\n" in result.output
    assert "mlp_down_out = output (32)\n" in result.output
    assert result.output.count("q_proj") == 1


def test_what_is_missing_is_said():
    model = tiny.model_of("gpt2")
    assert (
        "no mlp_gate: the MLP has no gate (first in transformer.h.0)"
        in layers._missing(sites.discover(model))[0]
    )


def test_an_unknown_model(tmp_path):
    result = CliRunner().invoke(main, ["layers", str(tmp_path)])
    assert result.exit_code == 1
    assert "there is no config.json in" in result.output


def test_schema():
    schema = json.loads(CliRunner().invoke(main, ["schema"]).output)
    assert {"name", "model", "prompt", "generation"} <= set(schema["properties"])


def test_json_has_the_sizes_beside_the_text(tmp_path):
    model = tiny.model_of("llama")
    model.save_pretrained(tmp_path)
    told = CliRunner().invoke(main, ["layers", str(tmp_path), "--format", "json"])
    facts = json.loads(told.stdout)
    assert facts["text"] == layers.outline(str(tmp_path))
    whole = sites.discover(model).layers[0].ports
    assert facts["sites"] == {site: port.width for site, port in whole.items()}
    sizes = ("layers", "hidden_size", "heads", "vocabulary", "context", "embeddings")
    assert [facts[name] for name in sizes] == [3, 32, 4, 300, 128, 32]
