"""The batch plan: every prompt once, like lengths together, the same on every machine."""

import random
from types import SimpleNamespace

import pytest

from warehouse.capture import batches
from warehouse.capture.batches import make_batches, shard_of
from warehouse.capture.proof import Proof


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 63, 1000])
def test_every_prompt_is_read_once(count, size):
    rng = random.Random(count)
    lengths = [rng.randint(1, 40) for _ in range(count)]
    ids = [f"row {n}" for n in range(count)]
    wanted = sorted(rng.sample(range(count), max(1, count // 2)))
    plan = make_batches(lengths, ids, wanted, size, shard=100)
    assert sorted(p for batch in plan for p in batch.prompts) == wanted
    for number, shard in enumerate(plan.shards):
        read = [p for batch in shard for p in batch.prompts]
        assert [lengths[p] for p in read] == sorted(lengths[p] for p in read)
        assert all(shard_of(ids[p], len(plan.shards)) == number for p in read)
        for place, batch in enumerate(shard):
            assert (batch.shard, batch.number) == (number, place)
            assert batch.padded == max(lengths[p] for p in batch.prompts)
            assert len(batch.prompts) <= size


def test_long_prompts_make_small_batches(monkeypatch):
    monkeypatch.setattr(batches, "BATCH_TOKENS", 100)
    plan = make_batches([10] * 9 + [60] * 3 + [300], list(map(str, range(13))), range(13), 64)
    assert [batch.shape for batch in plan] == [(9, 10), (1, 60), (1, 60), (1, 60), (1, 300)]


def test_a_plan_depends_on_what_is_read_alone():
    lengths, ids = [5 + n % 7 for n in range(40)], [f"row {n}" for n in range(40)]
    plan = make_batches(lengths, ids, range(40), 4, shard=20)
    assert plan.digest == make_batches(lengths, ids, range(40), 4, shard=20).digest
    others = [
        make_batches([6, *lengths[1:]], ids, range(40), 4, shard=20),
        make_batches(lengths, [f"other {n}" for n in range(40)], range(40), 4, shard=20),
        make_batches(lengths, ids, range(40), 5, shard=20),
        make_batches(lengths, ids, range(40), 4, shard=10),
        make_batches(lengths, ids, range(39), 4, shard=20),
    ]
    assert plan.digest not in [other.digest for other in others]


def test_shards_are_of_like_size_and_known_everywhere():
    counts = [0] * 8
    for n in range(8000):
        counts[shard_of(f"row-{n}", 8)] += 1
    assert min(counts) > 900 and max(counts) < 1100
    assert [shard_of(name, 7) for name in ("a", "b", "é", "")] == [4, 0, 3, 1]


@pytest.mark.parametrize("lengths", [[5] * 70, [5] * 65, [5, 6] * 9, list(range(1, 60)), [5] * 10])
def test_enough_prompts_are_read_alone_again(lengths):
    """Sixteen of a shard, or all that are read together, however small some batches are."""
    plan = make_batches(lengths, list(map(str, range(len(lengths)))), range(len(lengths)), 64)
    proof = Proof(SimpleNamespace(loaded=SimpleNamespace(dtype="float32")), list(plan))
    first = {batch.shape: batch for batch in plan if len(batch.prompts) > 1}.values()
    together = sum(len(batch.prompts) for batch in first)
    assert sum(len(proof.sample(batch)) for batch in first) >= min(16, together)


def test_what_a_shard_has_shown_the_next_one_need_not():
    plan = make_batches([5] * 64 + [6] * 64 + [7] * 64, list(map(str, range(192))), range(192), 64)
    short, middle, long = plan
    like = SimpleNamespace(loaded=SimpleNamespace(dtype="float32"))
    known = {short.shape: True, middle.shape: False}
    proof = Proof(like, list(plan), known)
    assert [proof.asks(batch) for batch in plan] == [False, False, True]
    assert (proof.is_right(short), proof.is_right(middle)) == (True, False)
    assert len(proof.sample(long)) == 1
    assert len(Proof(like, [long]).sample(long)) == 16
    assert proof.shapes == known
