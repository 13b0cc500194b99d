"""How likely each layer finds a token that the lens did not keep, against the model's own modules."""

import captures
import numpy as np
import pytest
import tiny
import torch

from warehouse.capture import conversation as capture
from warehouse.catalog import catalog
from warehouse.lens import head, lens
from warehouse.models import loading, sites


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])  # RMS norm, LayerNorm, soft cap
def test_trajectories_are_the_models_own(lake, family):
    loaded = loading.Loaded(tiny.model_of(family), tiny.tokenizer(), "tiny", "float32", "cpu")
    scenario = captures.make_scenario()
    run = capture.capture_one(scenario, loaded, sites.discover(loaded.model), lake)
    lens.logit_lens(lake, run, top_k=2, model=loaded)
    with catalog.connect(lake) as db:
        places = [row[0] for row in db.execute(
            "SELECT DISTINCT position FROM logit_lens_of(?) ORDER BY 1", [run]).fetchall()]  # fmt: skip
        asked = [(place, token) for place in (places[0], places[-1]) for token in (0, 5, 17)]
        found = db.execute(
            "SELECT position, token_id, layer, logprob FROM lens_trajectories(?, 0, ?, ?)",
            [run, [place for place, _ in asked], [token for _, token in asked]],
        ).fetchall()
        vectors = db.execute(
            "SELECT position, layer, vector FROM tensor_of(?, 'hidden_out')", [run]
        ).fetchall()
        assert db.execute("FROM lens_trajectories('no such run', 0, [1], [1])").fetchall() == []
        assert db.execute("FROM lens_trajectories(?, 0, [], [])", [run]).fetchall() == []
    own = head.extract(loaded.model)
    expected = {
        (position, layer): torch.log_softmax(
            own.logits(own.normed(torch.tensor(vector)[None])).double(), -1
        )[0]
        for position, layer, vector in vectors
    }
    layers = {layer for _, layer in expected}
    assert len(found) == len(asked) * len(layers)
    for position, token, layer, logprob in found:
        np.testing.assert_allclose(logprob, expected[position, layer][token].item(), atol=2e-4)
