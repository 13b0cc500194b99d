"""References of several examples: captured, averaged before rounding, exported and imported."""

import json

import numpy as np
import pytest
import torch
from captures import rows, run
from rows import everything

import warehouse
from warehouse.errors import AlabError
from warehouse.exchange.export import export
from warehouse.exchange.importing import import_run
from warehouse.lake.lake import Lake

TEXTS = [
    ("joy", "Joy!"),
    ("calm", "Joyless"),
    ("joy", "So glad"),
    ("joy", "What luck, really"),
    ("fear", "Boo"),
]
SEVERAL = [
    {"label": label, "messages": [{"role": "user", "content": text}]} for label, text in TEXTS
]
SINGLE = [{**one, "label": str(i)} for i, one in enumerate(SEVERAL)]


def states(lake, run_id, state):
    """(index, label) to the vectors of every layer and site."""
    query = "SELECT state_index, label, vector FROM states_of(?) WHERE state = ? ORDER BY state_index, layer, site"
    found = {}
    for index, label, vector in rows(lake, query, run_id, state):
        found.setdefault((index, label), []).append(vector)
    return {key: np.array(vectors) for key, vectors in found.items()}


def test_each_example_is_kept_and_the_reference_is_their_mean(lake, llama):
    several = run(lake, llama, reference_states=SEVERAL)
    alone = run(
        lake, llama, reference_states=SINGLE
    )  # the same conversations, each a reference of its own
    examples, references = states(lake, several, "example"), states(lake, several, "reference")
    own = {index: vectors for (index, _), vectors in states(lake, alone, "reference").items()}
    assert list(examples) == [(0, "joy"), (2, "joy"), (3, "joy")]
    assert list(references) == [(0, "joy"), (1, "calm"), (2, "fear")]
    for (index, _), vectors in examples.items():
        np.testing.assert_array_equal(vectors, own[index])
    mean = np.mean([own[i].astype(np.float64) for i in (0, 2, 3)], axis=0)
    np.testing.assert_array_equal(references[0, "joy"], mean.astype(np.float32))
    np.testing.assert_array_equal(references[1, "calm"], own[1])
    np.testing.assert_array_equal(references[2, "fear"], own[4])


def test_the_mean_is_of_unrounded_vectors(lake, llama):
    fine = run(lake, llama, reference_states=SEVERAL)
    coarse = run(lake, llama, reference_states=SEVERAL, capture={"store_dtype": "bfloat16"})
    exact = (
        torch.tensor(states(lake, fine, "reference")[0, "joy"], dtype=torch.float32)
        .bfloat16()
        .float()
        .numpy()
    )
    found = states(lake, coarse, "reference")[0, "joy"]
    np.testing.assert_array_equal(found, exact)
    rounded = np.mean(
        [v for (_, label), v in states(lake, coarse, "example").items() if label == "joy"], axis=0
    )
    assert (
        torch.tensor(rounded).bfloat16().float().numpy() != found
    ).any()  # the mean of rounded ones is another


def test_the_table_says_how_many(lake, llama):
    run(lake, llama, reference_states=SEVERAL)
    query = (
        "SELECT label, ref_index, n, n_tokens, messages FROM reference_states ORDER BY ref_index"
    )
    found = rows(lake, query)
    assert [row[:3] for row in found] == [("joy", 0, 3), ("calm", 1, 1), ("fear", 2, 1)]
    template = 3  # <|user|>, <|end|> and <|assistant|> are a token each
    assert found[0][3] == sum(template + len(text) for label, text in TEXTS if label == "joy")
    assert [c[0]["content"] for c in json.loads(found[0][4])] == [
        "Joy!",
        "So glad",
        "What luck, really",
    ]
    assert json.loads(found[1][4]) == [{"role": "user", "content": "Joyless"}]


def test_other_analyses_do_not_take_examples_for_states_of_their_own(lake, llama):
    several, single = (
        run(lake, llama, reference_states=some)
        for some in (SEVERAL, [SEVERAL[i] for i in (0, 1, 4)])
    )
    for call in (
        "intra_run",
        "snapshot_reference",
        "convergence",
        "residual_decomposition",
        "reference_shift",
    ):
        counts = {
            rows(lake, f"SELECT count(*) FROM {call}(?)", run_id)[0][0]
            for run_id in (several, single)
        }
        assert len(counts) == 1
    assert rows(lake, "SELECT count(*) FROM inter_run(?, ?)", several, single) == [(2 * 4 * 3,)]
    assert warehouse.open(lake.warehouse).report().exists()


def test_from_python(lake, llama):
    run_id = run(lake, llama, reference_states=SEVERAL)
    lab = warehouse.open(lake.warehouse)
    parts = [
        lab.vector(run_id, "attn_out", 1, state="example", example=i).astype(float)
        for i in (0, 2, 3)
    ]
    mean = lab.vector(run_id, "attn_out", 1, state="reference", label="joy")
    np.testing.assert_array_equal(mean, np.mean(parts, axis=0).astype("f4"))
    with pytest.raises(AlabError, match="no example 1 in this run\nThere are: 0, 2, 3"):
        lab.vector(run_id, "attn_out", 1, state="example", example=1)


@pytest.mark.parametrize("fmt", ["npz", "safetensors"])
def test_out_and_in_again(lake, llama, tmp_path, fmt):
    labels = [
        {**one, "label": one["label"] + " / a"} for one in SEVERAL
    ]  # a label need not be a file's name
    run_id = run(lake, llama, reference_states=labels)
    out = export(lake, run_id, tmp_path / "out", fmt=fmt)
    assert (out / "examples" / "index.json").exists()
    other = Lake(tmp_path / "other")
    again = import_run(other, out)
    before, after = everything(lake, run_id), everything(other, again)
    for name in ("states", "reference_states"):
        assert after[name] == before[name]


def test_a_run_of_single_examples_exports_what_it_did(lake, llama, tmp_path):
    out = export(lake, run(lake, llama), tmp_path / "out")
    assert not (out / "examples").exists()


def test_one_example_twice_is_refused(llama, lake):
    with pytest.raises(AlabError, match="the label 'joy' twice with the same messages"):
        run(lake, llama, reference_states=[SEVERAL[0], SEVERAL[1], SEVERAL[0]])
