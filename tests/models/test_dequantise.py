"""The dequantised copy of a GGUF file: whole, sound and told about, each time it is opened."""

import json
import shutil
from pathlib import Path

import captures
import gguf_files
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.errors import AlabError
from warehouse.models import dequantise, sites
from warehouse.models import loading as models


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ALAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def load(path: Path, dtype: str = "float32") -> models.Loaded:
    return models.load(
        scenario.Model(id=str(path.parent), gguf_file=path.name, dtype=dtype, device="cpu")
    )


def only(cache: Path) -> Path:
    (folder,) = cache.glob("*/")
    return folder


def test_the_copy_has_the_weights_of_the_file(cache, tmp_path):
    path = gguf_files.write(tmp_path / "full.gguf")
    for _ in range(2):
        loaded = load(path)
        assert loaded.notes == []
        for name, value in tiny.model_of("llama").named_parameters():
            assert torch.equal(loaded.model.get_parameter(name), value)
        assert loaded.weights_hash == loaded.copy.weights_hash


def test_a_file_that_lacks_a_tensor_is_refused_each_time(cache, tmp_path):
    path = gguf_files.write(
        tmp_path / "lack.gguf", without={"blk.1.ffn_up.weight", "blk.2.attn_norm.weight"}
    )
    for _ in range(2):
        with pytest.raises(
            AlabError,
            match=r"lack.gguf lacks 2 of the 30 weights .*: model.layers.1.mlp.up_proj.weight",
        ):
            load(path)
        assert not list(cache.glob("*/alab.json"))


def test_a_file_without_a_head_ties_it(cache, tmp_path):
    loaded = load(gguf_files.write(tmp_path / "tied.gguf", without={"output.weight"}))
    assert loaded.notes == []
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_tensors_that_fit_nowhere_are_told_each_time(cache, tmp_path):
    more = {
        "rope_freqs.weight": np.ones(4, np.float32),
        "blk.0.odd.weight": np.ones((4, 4), np.float32),
    }
    path = gguf_files.write(tmp_path / "extra.gguf", more=more)
    for _ in range(2):
        assert load(path).notes == [("unexpected_weights", "2 weights of extra.gguf fit nowhere in LlamaForCausalLM "
                                     "and were left out: blk.0.odd.weight, rope_freqs.weight")]  # fmt: skip


@pytest.mark.parametrize("harm", [
    lambda folder: (folder / "alab.json").unlink(),
    lambda folder: (folder / "alab.json").write_text("[]"),
    lambda folder: (folder / "model.safetensors").unlink(),
    lambda folder: (folder / "model.safetensors").write_bytes(b""),
    lambda folder: (folder / "tokenizer.json").unlink(),
    lambda folder: (folder / "config.json").write_text("{}"),
    lambda folder: shutil.rmtree(folder) or folder.mkdir(),
])  # fmt: skip
def test_a_copy_that_is_not_whole_is_made_anew(cache, tmp_path, harm):
    path = gguf_files.write(tmp_path / "full.gguf")
    first = load(path).weights_hash
    harm(only(cache))
    assert load(path).weights_hash == first


def test_a_copy_whose_weights_have_changed_is_refused(cache, tmp_path, lake):
    """One bit of one weight, in a file of the same length: before anything of the run is kept."""
    path = gguf_files.write(tmp_path / "full.gguf")
    load(path)
    weights = only(cache) / "model.safetensors"
    values = load_file(weights)
    values["model.layers.1.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1
    save_file(values, weights, {"format": "pt"})
    assert (
        json.loads((only(cache) / "alab.json").read_text())["files"]["model.safetensors"]
        == weights.stat().st_size
    )
    loaded = load(path)
    with pytest.raises(
        AlabError, match=r"(?s)the dequantised weights in .* are damaged.*Delete that folder"
    ):
        capture.capture_one(captures.make_scenario(), loaded, sites.discover(loaded.model), lake)
    assert lake.run_ids() == []


def test_a_copy_is_of_one_version_of_the_reader(cache, tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "full.gguf")
    one = dequantise.copy_of(str(tmp_path), "full.gguf").folder
    monkeypatch.setattr("transformers.__version__", "99.0")
    assert dequantise.copy_of(str(path.parent), "full.gguf").folder != one
