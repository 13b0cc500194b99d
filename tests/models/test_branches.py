"""Whole sequences as a tree in one pass: only where numbers show that it is right, and then right."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.models import sites
from warehouse.models.branches import FILL, Branches
from warehouse.models.reader import Reader

STEM = [5, 9, 12, 7, 30, 41, 8, 22]
SEQUENCES = [STEM, [*STEM, 17], [*STEM, 17, 90], [*STEM[:3], 91, 92], [93, *STEM], [93], [93]]
#: Alibi takes no positions, some recurrent layers and masks of their own take no tree.
REFUSING = {"bloom", "mpt", "falcon:alibi", "qwen3_next"}
sequences = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=7)


@settings(deadline=None)
@given(sequences=sequences, order=st.booleans(), data=st.data())
def test_rows_are_the_tokens_that_are_recorded(sequences, order, data):
    sequences = sorted(sequences) if order else sequences
    every = [data.draw(st.sets(st.integers(0, len(ids) - 1)).map(sorted)) for ids in sequences]
    for places in (None, every):
        batch = Branches(sequences, places)
        kept = [range(len(ids)) for ids in sequences] if places is None else places
        expected = [(number, at) for number, some in enumerate(kept) for at in some]
        ids, depths, sees = batch.ids[0], batch.positions[0], batch.mask[0, 0]
        assert ids.shape == depths.shape == batch.shape[1:] and len(ids) % FILL == 0
        assert batch.pick(ids).tolist() == [sequences[n][at] for n, at in expected]
        assert batch.pick(depths).tolist() == [at for _, at in expected]
        assert ids[batch.ends].tolist() == [own[-1] for own in sequences]
        for (number, at), row in zip(expected, batch.rows, strict=True):
            seen = sees[row].nonzero()[:, 0]
            assert ids[seen].tolist() == sequences[number][: at + 1]  # what is before it, alone
            assert seen.tolist() == batch.paths[number][: at + 1].tolist()
        assert sees.diagonal().all() and not sees[: len(batch.tokens), len(batch.tokens) :].any()
        if order:
            prefixes = {tuple(own[: at + 1]) for own in sequences for at in range(len(own))}
            assert len(batch.tokens) == len(prefixes)  # nothing is read twice
        weights = torch.rand(1, 2, len(ids), len(ids)) * sees
        picked = batch.pick_attention(weights)
        for row, (number, at) in enumerate(expected):
            own = weights[0, :, batch.rows[row], batch.paths[number][: at + 1]]
            assert torch.equal(picked[:, row, : at + 1], own) and not picked[:, row, at + 1 :].any()
        values = torch.rand(len(ids), 5).double()
        values[len(batch.tokens) :] = torch.nan  # of padding nothing is taken
        means = torch.stack([values[path].mean(0) for path in batch.paths])
        torch.testing.assert_close(batch.means(values), means.float())


def test_what_is_infinite_in_one_sequence_stays_there():
    batch = Branches([[1, 2, 3], [1, 2, 4]])
    values = torch.ones(batch.shape[1], 2)
    values[batch.ends[0]] = torch.inf
    assert batch.means(values).isfinite().all(1).tolist() == [False, True]


@pytest.mark.parametrize("attention", ["eager", None])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_along_branches_are_those_of_each_sequence(family, attention):
    model = tiny.model_of(family, attention)
    right = sites.discover(model, sharing=False, batches=True).branches
    assert right == (family not in REFUSING)
    with torch.inference_mode():
        reader, places = Reader(model), [[0, 3], [], [2], [0, 4], [8], [0], []]
        alone = [model(torch.tensor([ids])).logits[0] for ids in SEQUENCES]
        whole = torch.cat(alone)
        try:
            value = reader.read_batch(Branches(SEQUENCES), all_logits=True)
        except Exception:
            assert not right
            return
        close = bool(((value - whole).norm(dim=1) <= 1e-5 * whole.norm(dim=1)).all())
        assert close == right  # the probe over a few tokens sees what is wrong, and nothing else
        if not right:
            return
        last = reader.read_batch(Branches(SEQUENCES))
        some = reader.read_batch(Branches(SEQUENCES, places), all_logits=True)
    chosen = torch.stack([alone[n][at] for n, own in enumerate(places) for at in own])
    ends = torch.stack([logits[-1] for logits in alone])
    for value, expected in ((last, ends), (some, chosen)):
        assert value.shape == expected.shape
        assert ((value - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
    assert reader.ids == [] and reader._cache is None
