"""Models and devices that are not there."""

import pytest
import tiny
import torch

from warehouse import scenario
from warehouse.errors import AlabError
from warehouse.models import loading as models


def test_models_that_cannot_be_found(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # no waiting for a network
    tiny.model_of("llama").save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    cases = {
        "no/such-model": "cannot find 'no/such-model'; looked for it as a directory and in the cache of the model hub, which does not answer",
        "package:no_such_package": "there is no installed Python package 'no_such_package'",
        "package:../etc": "there is no installed Python package",
        str(tmp_path): "there is no config.json in",
        str(tmp_path / "broken"): "cannot load the model from",
        "./no-such-directory": "there is no directory ./no-such-directory",
    }
    for name, expected in cases.items():
        with pytest.raises(AlabError, match=expected):
            models.load(scenario.Model(id=name))
    with pytest.raises(AlabError, match=r"(?s)there is no 'x.gguf' in .*no GGUF file"):
        models.load(scenario.Model(id=str(tmp_path), gguf_file="x.gguf"))


def test_a_device_that_is_not_there():
    missing = next(
        d for d in ("cuda", "mps") if not getattr(torch, d, torch.backends.mps).is_available()
    )
    with pytest.raises(AlabError, match=f"model.device: {missing} is not available here"):
        models.load(scenario.Model(id="x", device=missing))
