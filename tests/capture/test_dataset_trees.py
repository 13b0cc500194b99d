"""A dataset that is read as trees: each row is its prompt's alone, and reading is chosen by what is measured."""

import copy
import random
import time
from types import SimpleNamespace

import pyarrow as pa
import pytest
import test_dataset_run
import tiny
import torch
from captures import loaded, rows
from prompts_alone import MESSAGES, alone, capture, check_rows, close, make, table
from test_dataset_resume import REQUEST, content, stop_after, sweep

import warehouse
from warehouse.capture import batches, dataset_run, trees
from warehouse.capture.batches import PlannedBatch, make_batches
from warehouse.capture.proof import Proof
from warehouse.lake.lake import Lake
from warehouse.models import sites
from warehouse.models.probe import outputs_of

HEADS = (
    "Say what is true, in one word, and nothing else",
    "Say what is not true, in as many words as you like",
)
MODELS = {
    "llama": {},
    "gpt2": {"n_positions": 512},
    "gemma2": {"sliding_window": 256},
    "mixtral": {},
    "bloom": {},
    "qwen3_next": {},
    "gemma2:narrow": {"sliding_window": 40},
}


@pytest.fixture
def chosen(monkeypatch):
    """Trees are faster, however few prompts there are and whatever the clock says."""
    monkeypatch.setattr(trees, "FEWEST", 2)
    monkeypatch.setattr(trees, "TOKENS", {"cpu": 160})
    monkeypatch.setattr(trees, "LESS_TIME", float("inf"))


def chats(count: int) -> pa.Table:
    """Shuffled rows under two long system messages, some of them the same."""
    rng, source = random.Random(3), table(count, longest=20)
    heads = pa.array([rng.choice(HEADS) for _ in range(count)])
    return source.set_column(0, "head", heads)


def long_model(monkeypatch, name: str):
    """A tiny model of a family that takes long trees."""
    family, own = name.partition(":")[0], MODELS[name]
    longer = tiny.FAMILIES[family] | {"max_position_embeddings": 512} | own
    monkeypatch.setitem(tiny.FAMILIES, f"{name}:trees" if ":" not in name else name, longer)
    return tiny.model_of(f"{name}:trees" if ":" not in name else name)


@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_its_prompt_alone(lake, monkeypatch, chosen, name):
    model, source = long_model(monkeypatch, name), chats(50)
    request = make(
        name.partition(":")[0],
        {"text": None, "messages": MESSAGES},
        sites=test_dataset_run.SITES,
        positions=["last", "word", "all", "mean", "message_ends"],
    )
    run_id = capture(lake, model, request, source)
    check_rows(lake, run_id, name.partition(":")[0], model, source, messages=True)
    ways = dict(rows(lake, "select way, count(*) from batches group by way"))
    errors = [error for (error,) in rows(lake, "select batch_error from layers")]
    assert max(errors) <= 1e-5
    if name in ("bloom", "qwen3_next", "gemma2:narrow"):  # no tree is right, or none is long enough
        assert "tree" not in ways
    else:
        assert set(ways) == {"tree"} and min(errors) >= 0
        assert rows(lake, "select count(distinct batch) > 2 from batches") == [(True,)]
        assert rows(lake, "from warnings where code = 'batch'") == []


class Leaking(torch.nn.Module):
    """An MLP whose tokens leak into each other, in passes of some shape."""

    def __init__(self, mlp: torch.nn.Module, leaks):
        super().__init__()
        self.mlp, self.leaks = mlp, leaks

    def forward(self, states):
        values = self.mlp(states)
        if self.leaks(*states.shape[:2]):
            values = values + 1e-3 * values.mean((0, 1), keepdim=True)
        return values


@pytest.fixture
def leaking(monkeypatch):
    """Makes a llama of which a layer mixes the tokens of some passes."""
    model = copy.deepcopy(long_model(monkeypatch, "llama"))

    def make_model(leaks):
        model.model.layers[1].mlp = Leaking(model.model.layers[1].mlp, leaks)
        return model

    return make_model


def check_vectors(lake, run_id: str, model, source: pa.Table) -> None:
    vectors, _ = warehouse.open(lake.warehouse).matrix(run_id, "hidden_out", 2)
    for n, row in enumerate(source.to_pylist()):
        text = f"<|system|>{row['head']}.<|end|><|user|>Is it {row['word']}{row['tail']}<|end|><|assistant|>"
        own = alone(model, "mixing", tiny.tokenizer()(text)["input_ids"])
        close(vectors[n], own["hidden_out", 2][-1], ("mixing", n))


CHAT = {"text": None, "messages": MESSAGES}


@pytest.mark.parametrize(
    ("leaks", "ways", "said"),
    [
        (lambda count, tokens: count > 1, {"tree"}, False),  # no two prompts beside one another
        (lambda count, tokens: count == 1 and tokens > 120, {"batch"}, False),  # seen beforehand
        (lambda count, tokens: count == 1 and tokens > 200, {"alone", "tree"}, True),
    ],
)
def test_what_a_model_does_not_do_rightly_is_not_done(lake, chosen, leaking, leaks, ways, said):
    model, source = leaking(leaks), chats(60)
    run_id = capture(lake, model, make("d", CHAT, sites=["hidden_out"]), source)
    check_vectors(lake, run_id, model, source)
    read = {way for (way,) in rows(lake, "select distinct way from batches")}
    assert read <= ways and ("alone" in read) == said
    messages = rows(lake, "select message from warnings where code = 'batch'")
    assert bool(messages) == said
    assert all("in a tree gave layer" in message for (message,) in messages)


@pytest.fixture
def pair(monkeypatch):
    model = long_model(monkeypatch, "llama")
    return loaded(model), sites.discover(model, sharing=False, batches=True)


@pytest.mark.parametrize("slower", ["padded", "tree"])
def test_the_faster_way_is_taken(lake, monkeypatch, pair, slower):
    """Passes of one way are made slow: the other is chosen, though its tokens are as many."""
    slow = trees.Branches if slower == "tree" else trees.Batch
    own = trees._Speed._read

    def read(speed, batches):
        time.sleep(0.3 if isinstance(batches[0], slow) else 0)
        return own(speed, batches)

    monkeypatch.setattr(trees._Speed, "_read", read)
    capture(lake, pair, make("d", CHAT, sites=["hidden_out"]), chats(trees.FEWEST))
    expected = "tree" if slower == "padded" else "batch"
    assert rows(lake, "select distinct way from batches") == [(expected,)]


@pytest.mark.parametrize("tokens", [32, 64])
def test_trees_of_few_prompts(lake, monkeypatch, chosen, pair, tokens):
    monkeypatch.setattr(trees, "TOKENS", {"cpu": tokens})
    monkeypatch.setattr(trees, "FEWER_TOKENS", 9.0)
    source = chats(30)
    run_id = capture(lake, pair, make("d", CHAT, sites=["hidden_out"]), source)
    check_vectors(lake, run_id, pair[0].model, source)
    ways = dict(rows(lake, "select way, count(*) from batches group by way"))
    assert ways["tree"] >= 2 and "batch" not in ways


def test_nothing_is_measured_where_nothing_is_shared(lake, monkeypatch, pair):
    monkeypatch.setattr(trees, "_Speed", None)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + "cdefghijklmnop" for a in letters for b in letters[:6]]
    source = pa.table({"head": words, "word": ["x"] * len(words), "tail": [""] * len(words)})
    capture(lake, pair, make(sites=["hidden_out"]), source)
    capture(lake, pair, make("d", CHAT, sites=["hidden_out"]), chats(trees.FEWEST - 1))
    assert rows(lake, "select distinct way from batches") == [("batch",)]


def test_prompts_that_begin_alike_lie_in_one_tree(pair, monkeypatch):
    rng = random.Random(0)
    prompts = [
        [rng.choice("xyz").encode()[0]] * 6 + rng.choices(range(9), k=n % 7) for n in range(200)
    ]
    given = SimpleNamespace(ids=prompts.__getitem__, lengths=[len(ids) for ids in prompts])
    plan = SimpleNamespace(loaded=pair[0])
    ids = [f"row {n}" for n in range(200)]
    for most in ({"prompts": 30, "tokens": 64}, {"prompts": 5, "tokens": 1024}):
        cut = trees.cut_trees(plan, given, most)
        planned = make_batches(given.lengths, ids, range(200), 8, shard=100, cut=cut)
        assert sorted(p for batch in planned for p in batch.prompts) == list(range(200))
        assert {batch.shard for batch in planned} == {0, 1}
        for batch in planned:
            own = [prompts[p] for p in batch.prompts]
            prefixes = {tuple(ids[: n + 1]) for ids in own for n in range(len(ids))}
            assert own == sorted(own)
            assert len(prefixes) <= batch.tree == -(-len(prefixes) // 32) * 32 <= most["tokens"]
            assert len(own) <= most["prompts"] and batch.padded == max(map(len, own))
        read = sum(batch.tree for batch in planned)
        assert read < (0.6 if most["prompts"] == 30 else 1.8) * sum(given.lengths)
    assert trees.cut_trees(plan, given, None) is None


@pytest.mark.parametrize("count", [1, 5, 16, 40, 100])
def test_the_prompts_read_alone_are_spread_over_the_trees(count):
    planned = [PlannedBatch(0, n, tuple(range(10 * n, 10 * n + 10)), 9, 64) for n in range(count)]
    proof = Proof(SimpleNamespace(loaded=SimpleNamespace(dtype="float32")), planned)
    tensors = lambda: [SimpleNamespace(layer=0, sites={}, means={}, attention=None)]  # noqa: E731
    asked, sampled = [], []
    for batch in planned:
        if proof.asks(batch):
            asked.append(batch.number)
            sampled += [batch.prompts[place] for place in proof.sample(batch)]
            assert proof.holds(batch, tensors(), [(0, tensors())], [1] * 10)
        assert proof.is_right(batch)
    assert len(sampled) == len(set(sampled)) and len(sampled) == min(16, 10 * count)
    assert asked[0] == 0 and asked[-1] >= count - -(-count // 16)
    if count >= 16:  # and not always the first branch
        assert len({prompt % 10 for prompt in sampled}) > 4


@pytest.mark.parametrize("calls", [0, 3, 7])
def test_a_stop_between_trees(tmp_path, lake, monkeypatch, chosen, pair, calls):
    """What goes on follows what was chosen at the beginning, and does not measure again."""
    monkeypatch.setattr(batches, "SHARD", 40)
    source, request = chats(150), make("d", CHAT, **REQUEST)
    there = Lake(tmp_path / "whole")
    whole = content(there, capture(there, pair, request, source))
    assert rows(there, "select distinct way from batches where way <> 'alone'") == [("tree",)]
    with monkeypatch.context() as patch:
        stop_after(patch, dataset_run._Shards, "_read_batch", calls)
        with pytest.raises(KeyboardInterrupt):
            capture(lake, pair, request, source)
    sweep(lake)
    monkeypatch.setattr(trees, "FEWEST", 1 << 30)  # would say otherwise now
    (run_id,) = lake.unfinished()
    assert capture(lake, pair, request, source, resume=True) == run_id
    assert content(lake, run_id) == whole


def test_frequencies_that_change_with_length_are_not_in_one_tree(lake, chosen):
    """Beyond 24 tokens this model turns keys otherwise."""
    own, source = tiny.model_of("phi3:longrope"), table(60)
    shared = source.set_column(0, "head", pa.array(["Is it "] * 60))
    run_id = capture(lake, own, make(sites=["hidden_out"]), shared)
    vectors, _ = warehouse.open(lake.warehouse).matrix(run_id, "hidden_out", 2)
    ways = dict(rows(lake, "select way, count(*) from batches group by way"))
    layer = own.model.layers[2]
    assert ways["tree"] > 40
    for n, row in enumerate(shared.to_pylist()):
        ids = tiny.tokenizer()(row["head"] + row["word"] + row["tail"])["input_ids"]
        with outputs_of([layer]) as outputs, torch.no_grad():
            own(torch.tensor([ids]), use_cache=False)
        close(vectors[n], outputs[layer][0][0, -1], ("phi3", n))
