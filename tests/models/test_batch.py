"""Several sequences in one pass: padded on the right, and only where numbers show that it is right."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from warehouse.errors import AlabError
from warehouse.models import sharing, sites
from warehouse.models.batch import Batch
from warehouse.models.reader import Reader

SEQUENCES = [[5, 9, 12, 7, 30, 41], [8], [22, 9, 17], [90, 91, 92, 93, 94, 95, 96, 97, 98]]
sequences = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=5)


@given(sequences=sequences, data=st.data())
def test_rows_are_the_tokens_that_are_recorded(sequences, data):
    every = [data.draw(st.sets(st.integers(0, len(ids) - 1)).map(sorted)) for ids in sequences]
    for places in (None, every):
        batch = Batch(sequences, places)
        flat, mask = batch.ids.flatten(), batch.mask.flatten()
        expected = [
            (number, place)
            for number, ids in enumerate(sequences)
            for place in (range(len(ids)) if places is None else places[number])
        ]
        assert batch.pick(flat).tolist() == [sequences[n][place] for n, place in expected]
        assert [(n, at + i) for n, at, count in batch.spans for i in range(count)] == expected
        assert batch.pick(mask).all() and mask.sum() == sum(map(len, sequences))
        assert flat[batch.ends].tolist() == [ids[-1] for ids in sequences]
        if expected:
            weights = torch.rand(len(sequences), 2, batch.width, batch.width)
            picked = batch.pick_attention(weights)
            for row, (number, place) in enumerate(expected):
                own = weights[number, :, place, : place + 1]
                assert torch.equal(picked[:, row, : place + 1], own)


@pytest.mark.parametrize("attention", ["eager", None])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_of_a_batch_are_those_of_each_sequence(family, attention):
    model = tiny.model_of(family, attention)
    assert sites.discover(model, sharing=False, batches=True).batches
    with torch.inference_mode():
        reader = Reader(model)
        alone = [model(torch.tensor([ids])).logits[0] for ids in SEQUENCES]
        last = reader.read_batch(Batch(SEQUENCES))
        whole = reader.read_batch(Batch(SEQUENCES), all_logits=True)
        some = reader.read_batch(Batch(SEQUENCES, [[0, 3], [], [2], [8]]), all_logits=True)
    chosen = torch.stack([alone[0][0], alone[0][3], alone[2][2], alone[3][8]])
    expected = torch.stack([logits[-1] for logits in alone]), torch.cat(alone), chosen
    for value, right in zip((last, whole, some), expected, strict=True):
        assert value.shape == right.shape
        assert ((value - right).norm(dim=1) <= 1e-5 * right.norm(dim=1)).all()
    assert reader.ids == [] and reader._cache is None


class Mixes(torch.nn.Module):
    """A layer that adds the mean of its batch to each sequence."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        for name in ("attention_type", "layer_type"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states, **options):
        output = self.layer(hidden_states, **options)
        first = output[0] if isinstance(output, tuple) else output
        mixed = first + first.mean(0, keepdim=True)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def test_a_model_that_mixes_its_rows_does_not_read_batches():
    config = tiny.config_of("llama")
    torch.manual_seed(0)
    model = type(tiny.model_of("llama"))._from_config(config, attn_implementation="eager").eval()
    assert sites.discover(model, sharing=False, batches=True).batches
    model.model.layers[1] = Mixes(model.model.layers[1])
    tokens, outputs = list(range(10, 18)), []
    last = model.model.layers[-1]
    handle = last.register_forward_hook(
        lambda m, a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(torch.tensor([tokens]))
    handle.remove()
    plain = outputs[0].reshape(len(tokens), -1)
    assert not sharing.batches(Reader(model), last, tokens, plain)
    assert not sites.discover(model).batches  # which is not asked


def test_sequences_that_turn_keys_otherwise_are_not_read_together():
    reader = Reader(tiny.model_of("phi3:longrope"))
    with torch.inference_mode():
        assert len(reader.read_batch(Batch([list(range(7, 40)), list(range(9, 50))]))) == 2
        with pytest.raises(AlabError, match="5 to 33 tokens cannot be read in one pass"):
            reader.read_batch(Batch([list(range(7, 40)), [5, 6, 7, 8, 9]]))


def test_a_token_that_is_not_embedded_is_refused():
    with pytest.raises(AlabError, match="token 9999 cannot be read"):
        Reader(tiny.model_of("llama")).read_batch(Batch([[5], [9999, 3]]))


def test_fewer_short_passes_before_a_capture():
    model, passes = tiny.model_of("llama"), []
    handle = model.register_forward_hook(lambda *of: passes.append(1))
    sites.discover(model)
    handle.remove()
    assert len(passes) == 7
