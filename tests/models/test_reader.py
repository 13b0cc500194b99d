"""Reading sequences, several in one pass where the family can, and choosing tokens."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from warehouse.models import reader as generate
from warehouse.models import sites
from warehouse.models.tree import Tree

#: Families that cannot: alibi counts places in the pass, and a recurrent state has no branches.
WITHOUT = {"bloom", "falcon:alibi", "mpt", "qwen3_next"}

#: Families that need more than one pass, since they turn keys otherwise in long sequences.
SEVERAL = {"phi3:longrope": 2}

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@given(
    cached=st.lists(st.integers(0, 2), max_size=8),
    sequences=st.lists(tokens, min_size=1, max_size=6),
)
def test_each_token_sees_its_own_sequence(cached, sequences):
    tree = Tree(cached)
    for name, ids in enumerate(sequences):
        grown = tree.grown(ids)
        tree.add(name, ids)
        assert (tree.trunk, len(tree.tokens)) == grown
    seen = torch.tensor([*cached[: tree.trunk], *tree.tokens])
    places = torch.tensor([*range(tree.trunk), *tree.positions])
    sees = tree.mask()
    assert sees.shape == (len(tree.tokens), tree.trunk + len(tree.tokens))
    for name, ids in enumerate(sequences):
        own = sees[tree.ends[name]]
        assert seen[own].tolist() == ids
        assert places[own].tolist() == list(range(len(ids)))
    stem = [*cached[: tree.trunk], *tree.tokens[: tree.stem()]]
    assert tree.positions[: tree.stem()] == list(range(tree.trunk, len(stem)))
    assert not tree.stem() or all(ids[: len(stem)] == stem[: len(ids)] for ids in sequences)
    ways = {tuple(seen[row].tolist()) for row in sees}
    assert len(tree.tokens) <= len(ways) + len(
        sequences
    )  # twice at the most: a last token that is read again


def sequences_of(length: int) -> tuple[list[int], list[list[int]]]:
    """A conversation, and sequences that share some of it, some of each other, all of it, or nothing."""
    ids = torch.randint(7, 200, (length,), generator=torch.Generator().manual_seed(3)).tolist()
    more = [
        [*ids, 8, 9],
        ids[:30],
        [*ids[:20], 9, 10, 11],
        [*ids[:20], 9, 10, 12, 13],
        [*ids[:7], 14],
        [15, 16, 17],
    ]
    return ids, more


def last_states(
    model, layer, reader: generate.Reader, sequences: list[list[int]]
) -> tuple[torch.Tensor, int]:
    """(sequences, width) outputs of a layer for the last tokens, and how many passes they took."""
    outputs: list[torch.Tensor] = []
    found = {}
    passes = 0
    handle = layer.register_forward_hook(
        lambda m, a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        for tree in reader.as_trees(sequences):
            reader.read_tree(tree)
            passes += 1
            rows = outputs[-1].reshape(-1, outputs[-1].shape[-1])
            found |= {name: rows[end] for name, end in tree.ends.items()}
    finally:
        handle.remove()
    return torch.stack([found[name] for name in range(len(sequences))]), passes


def together_and_alone(
    model, found: sites.ModelSites, length: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """States of sequences read off a conversation's cache, of each read alone, and how many passes the former took."""
    layer = model.get_submodule(found.layers[-1].module)
    ids, sequences = sequences_of(length)
    with torch.inference_mode():
        reader = generate.Reader(model, trees=found.trees, rewinds=found.rewinds)
        reader.read(ids)
        together, passes = last_states(model, layer, reader, sequences)
        again, _ = last_states(
            model, layer, reader, sequences
        )  # the cache is as it was, or as short as they need it
        alone = torch.cat(
            [last_states(model, layer, generate.Reader(model), [s])[0] for s in sequences]
        )
    close(again, alone)
    return together, alone, passes


def close(states: torch.Tensor, expected: torch.Tensor) -> None:
    assert ((states - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()


@pytest.mark.parametrize("attention", ["eager", None])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_pass_over_a_tree_is_many_passes(family, attention):
    model = tiny.model_of(family, attention)
    found = sites.discover(model)
    assert found.trees == (family not in WITHOUT)
    together, alone, passes = together_and_alone(model, found, 48)
    assert passes == (len(alone) if family in WITHOUT else SEVERAL.get(family, 1))
    close(together, alone)


@pytest.mark.parametrize("length", [40, 62, 100])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss"])
def test_a_sliding_window(family, length):
    """A tree that would not fit into the window of 64, or a window that has moved on: one after the other, rightly."""
    model = tiny.model_of(family)
    together, alone, passes = together_and_alone(model, sites.discover(model), length)
    assert passes == 1 if length == 40 else passes > 1
    close(together, alone)


@pytest.mark.parametrize("length", [48, 60])
def test_a_window_that_the_cache_does_not_show(length):
    """Local attention of GPT-Neo counts places in the pass: a tree must fit into its window of 64, with the trunk."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt_neo", vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, window_size=64,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    found = sites.discover(model)
    assert found.trees
    together, alone, passes = together_and_alone(model, found, length)
    assert (passes == 1) == (length == 48)
    close(together, alone)


def test_what_all_sequences_share_is_read_once(monkeypatch):
    """References with a long common beginning that the cache does not have."""
    monkeypatch.setattr(generate, "TREE_TOKENS", 40)
    model = tiny.model_of("llama")
    ids, _ = sequences_of(48)
    beginning = ids[::-1][:30]
    read = 0
    with torch.inference_mode():
        reader = generate.Reader(model, trees=True)
        reader.read(ids)
        for tree in reader.as_trees([[*beginning, n, n, n] for n in range(10)]):
            read += len(tree.tokens)
            reader.read_tree(tree)
    assert reader.ids == beginning
    assert read == 30 + 10 * 3


def test_a_tree_fits_into_the_context():
    """GPT-Neo has a mask of its own that is as long as its context."""
    config = AutoConfig.for_model(
        "gpt_neo", vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]],
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    assert sites.discover(model).trees
    ids, _ = sequences_of(60)
    with torch.inference_mode():
        reader = generate.Reader(model, trees=True)
        reader.read(ids)
        _, passes = last_states(
            model, model.transformer.h[-1], reader, [[*ids, n, n] for n in range(5)]
        )
    assert passes == 3


def test_dynamic_scaling_of_one_kind_of_layer():
    config = tiny.config_of("gemma3_text")
    config.rope_parameters = {
        "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config.layer_types = ["sliding_attention", "full_attention", "full_attention"]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    assert sites.discover(model).trees


def test_a_cache_that_does_not_go_back():
    """It says that it can and then raises; every sequence is read whole."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("minimax", **tiny._COMMON | tiny._MOE, head_dim=8, block_size=16)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    found = sites.discover(model)
    assert (found.trees, found.rewinds) == (False, False)
    together, alone, _ = together_and_alone(model, found, 48)
    assert torch.equal(together, alone)


def test_a_model_that_remembers_the_longest_sequence():
    """Dynamic scaling has frequencies of its own for every length past the trained one: each is read anew."""
    config = tiny.config_of("llama")
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config.max_position_embeddings = 24

    def alone(ids):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        ).eval()  # one without a past
        return last_states(model, model.model.layers[-1], generate.Reader(model), [ids])[0], model

    ids, sequences = sequences_of(48)
    with torch.inference_mode():
        states, models = zip(*(alone(s) for s in sequences), strict=True)
        model = models[0]
        reader = generate.Reader(model, trees=True)
        reader.read(ids)
        together, passes = last_states(model, model.model.layers[-1], reader, sequences)
    assert passes < len(sequences)
    close(together, torch.cat(states))


def test_a_tree_is_no_larger_than_a_pass(monkeypatch):
    """What would not fit begins the next tree; a sequence longer than that is read alone, and shared by the next."""
    monkeypatch.setattr(generate, "TREE_TOKENS", 10)
    model = tiny.model_of("llama")
    ids, _ = sequences_of(48)
    long = ids[::-1][:20]
    sequences = [[*ids[:9], n, n, n, n] for n in range(5)] + [long, [*long, 5], [*long, 6], [7]]
    sizes = []
    with torch.inference_mode():
        reader = generate.Reader(model, trees=True)
        reader.read(ids)
        for tree in reader.as_trees(sequences):
            sizes.append((list(tree.ends), len(tree.tokens)))
            reader.read_tree(tree)
    assert sizes == [([0, 1], 8), ([2, 3], 8), ([4], 4), ([5], 20), ([6, 7, 8], 3)]
