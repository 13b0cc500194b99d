"""What heads move: `attended_value` of real captures against the model's own cache and weights."""

import numpy as np
import pytest
import torch
from captures import family, rows, run

QUERY = "SELECT layer, head, position, moved, available, share FROM attended_value('latest') ORDER BY ALL"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "gpt_bigcode", "falcon:new"])
def test_against_the_models_own_values(lake, name):
    """Query heads of their own, in groups, and all over one key-value head; fused projections in every order."""
    loaded, found = family(name)
    run(lake, (loaded, found))
    ids = [
        row[0]
        for row in rows(
            lake, "SELECT token_id FROM tokens WHERE step IS NOT NULL ORDER BY position"
        )
    ]
    with torch.inference_mode():
        output = loaded.model(torch.tensor([ids]), output_attentions=True, use_cache=True)
    answers = rows(lake, QUERY)
    heads = loaded.model.config.num_attention_heads
    assert len(answers) == len(output.attentions) * heads * len(ids)
    for layer, head, position, moved, available, share in answers:
        values = output.past_key_values.layers[layer].values[0].double().numpy()
        weights = output.attentions[layer][0, head, position].double().numpy()
        own = values[head // (heads // len(values))]
        expected = np.linalg.norm(weights @ own)
        assert moved == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert available == pytest.approx(weights @ np.linalg.norm(own, axis=1), rel=1e-4)
        assert share == pytest.approx(moved / available, rel=1e-9)
        assert share < 1 + 1e-9


def test_one_layer_or_step(lake, llama):
    run_id = run(lake, llama)
    columns = "layer, step, head, position, round(moved, 12)"
    whole = rows(lake, f"SELECT {columns} FROM attended_value(?) ORDER BY ALL", run_id)
    for layer, step in ((1, None), (None, 2), (2, 0)):
        query = f"SELECT {columns} FROM attended_value(?, layer := ?, step := ?) ORDER BY ALL"
        some = rows(lake, query, run_id, layer, step)
        assert (
            some
            == [row for row in whole if layer in (None, row[0]) and step in (None, row[1])]
            != []
        )


@pytest.mark.parametrize("off", ["attention_weights", "qkv"])
def test_no_rows_without_attention_or_values(lake, llama, off):
    run(lake, llama, capture={off: False})
    assert rows(lake, QUERY) == []
