"""`model.revision`: the commit that is asked for is the one that runs, and it is recorded; on a hub's local cache."""

import json

import captures
import pytest
import tiny
import torch

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.errors import AlabError
from warehouse.lens import lens
from warehouse.models import loading as models
from warehouse.models import sites

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub with two commits of one model, `main` being the newer one, and no network."""
    home = tmp_path / "hub" / "models--some--model"
    for number, commit in enumerate((OLD, NEW)):
        model = tiny.AutoModelForCausalLM.from_config(tiny.config_of("llama"))
        for parameter in model.parameters():
            parameter.data.fill_(0.01 * (number + 1))
        model.lm_head.weight.data[5 + number] += 1
        model.save_pretrained(home / "snapshots" / commit)
        tiny.tokenizer().save_pretrained(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(NEW)
    (home / "refs" / "v1").write_text(OLD)
    for name in (
        "huggingface_hub.constants.HF_HUB_CACHE",
        "transformers.utils.hub.constants.HF_HUB_CACHE",
    ):
        monkeypatch.setattr(name, str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return home


def load(**more) -> models.Loaded:
    return models.load(scenario.Model(id="some/model", dtype="float32", device="cpu", **more))


def test_the_commit_that_is_asked_for_is_loaded_and_recorded(hub, lake):
    for revision, commit, value in (
        (None, NEW, 0.02),
        ("v1", OLD, 0.01),
        (OLD, OLD, 0.01),
        ("main", NEW, 0.02),
    ):
        loaded = load(revision=revision)
        assert loaded.revision == commit
        assert torch.all(loaded.model.model.norm.weight == value)
    loaded = load(revision="v1")
    wanted = captures.make_scenario(model={"id": "some/model", "revision": "v1"})
    run = capture.capture_one(wanted, loaded, sites.discover(loaded.model), lake)
    assert captures.rows(lake, "SELECT revision, model_id FROM runs") == [(OLD, "some/model")]
    (text,) = captures.rows(lake, "SELECT scenario_json FROM runs")[0]
    assert json.loads(text)["model"]["revision"] == "v1"
    (hub / "refs" / "v1").write_text(NEW)  # the name moves on: the lens loads the commit that ran
    lens.logit_lens(lake, run)
    assert lake.models() == [loaded.weights_hash]


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(AlabError, match=r"cannot find 'some/model' at the revision 'v9'"):
        load(revision="v9")


def test_a_directory_has_no_revisions(tmp_path):
    tiny.model_of("llama").save_pretrained(tmp_path)
    with pytest.raises(AlabError, match=r"model.revision: .* is no hub id"):
        models.load(scenario.Model(id=str(tmp_path), revision="main"))
