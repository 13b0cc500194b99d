"""Several layers at once, and whole conversations as one array with its tokens."""

import numpy as np
import pyarrow as pa
import pytest
from captures import run
from synthetic import Shape, make_run

import warehouse
from warehouse.catalog import catalog
from warehouse.errors import AlabError

SAID = "FROM token_similarity($run, 2, 'hidden_out', 5)"


@pytest.fixture
def lab(two_runs):
    return warehouse.open(two_runs[0].warehouse)


@pytest.mark.parametrize("layers", [[0, 2], [2, 0], range(3), (1,), np.array([1, 2])])
def test_several_layers_are_those_of_each(lab, layers):
    for site, step in (("hidden_out", 0), ("mlp_act", 2), ("attention", 0), ("attention", 3)):
        found = lab.tensor("alpha", site, layer=layers, step=step)
        assert len(found) == len(layers)
        for one, layer in zip(found, layers, strict=True):
            np.testing.assert_array_equal(
                one, lab.tensor("alpha", site, layer=int(layer), step=step)
            )


def test_a_conversation_is_its_passes_one_after_the_other(lab):
    for site in ("hidden_in", "k", "mlp_act"):
        found = lab.activations("alpha", site)
        assert found.layers == (0, 1, 2)
        for layer in found.layers:
            passes = [lab.tensor("alpha", site, layer=layer, step=step) for step in range(4)]
            np.testing.assert_array_equal(found.values[layer], np.concatenate(passes))
    assert found.values.dtype == np.float32
    assert repr(found).endswith("prompt 0: (3, 15, 24))")
    one = lab.activations("alpha", "k", 1)
    assert (one.values.shape, one.layers) == ((1, 15, 16), (1,))
    assert lab.activations("alpha", "k", [2, 0]).layers == (2, 0)


def test_its_tokens_are_those_of_the_table(lab, two_runs):
    found = lab.activations("beta", "q", [1])
    query = "SELECT step, position, token_id, token, message_index, role, is_template, is_generated FROM tokens"
    rows = lab.sql(
        query + " WHERE run_id = $run AND step IS NOT NULL ORDER BY position", run=two_runs[2]
    ).fetchall()
    assert [tuple(row.values()) for row in found.tokens.to_pylist()] == rows
    assert found.run_id == two_runs[2]


def test_embeddings_and_logits_have_no_layers(lab):
    for site, width in (("embeddings", 16), ("logits", 40)):
        found = lab.activations("alpha", site)
        assert (found.values.shape, found.layers) == ((15, width), ())
        np.testing.assert_array_equal(found.values[12:13], lab.tensor("alpha", site, step=1))
        assert found.table()["layer"].null_count == 15


def test_each_conversation_of_a_run(lake, llama):
    """A real capture of two conversations, which lie in the same files."""
    messages = [{"role": "user", "content": text} for text in ("Hi", "A much longer question")]
    run_id = run(lake, llama, prompt=[{"messages": [message]} for message in messages])
    lab = warehouse.open(lake.warehouse)
    for prompt in range(2):
        found = lab.activations(run_id, "hidden_out", prompt=prompt)
        passes = [
            lab.tensor(run_id, "hidden_out", layer=range(3), step=step, prompt=prompt)
            for step in range(4)
        ]
        np.testing.assert_array_equal(found.values, np.concatenate(passes, axis=1))
        assert "".join(found.tokens["token"].to_pylist()).startswith(
            f"<|user|>{messages[prompt]['content'][:1]}"
        )
        assert found.tokens["position"].to_pylist() == list(range(found.values.shape[1]))
    with pytest.raises(AlabError, match="there is no prompt 2 in this run\nThere are: 0, 1"):
        lab.activations(run_id, "hidden_out", prompt=2)


def test_long_form_joins_in_arrow(lab, two_runs):
    found = lab.activations("alpha", "hidden_out", [2, 1])
    table = found.table()
    assert table.num_rows == 2 * 15
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(found.values.shape)
    np.testing.assert_array_equal(vectors, found.values)
    assert table["layer"].to_pylist() == [2] * 15 + [1] * 15
    assert table["position"].to_pylist() == list(range(15)) * 2
    said = lab.sql(SAID, run=two_runs[1]).to_arrow_table()
    joined = said.join(
        table.drop_columns(["vector", "run_id", "prompt_id", "token", "role"]), "position"
    )
    assert joined.num_rows == 30


def test_one_line_in_pandas(lab, two_runs):
    pytest.importorskip("pandas")
    found = lab.activations("alpha", "hidden_out", 2)
    frame = lab.sql(SAID, run=two_runs[1]).df().merge(found.table().to_pandas())
    np.testing.assert_array_equal(np.stack(frame.sort_values("position").vector), found.values[0])


def test_one_line_in_polars(lab, two_runs):
    pl = pytest.importorskip("polars")
    found = lab.activations("alpha", "hidden_out", 2)
    said = lab.sql(SAID, run=two_runs[1])
    frame = said.pl().join(pl.from_arrow(found.table()), "position")
    np.testing.assert_array_equal(frame.sort("position")["vector"].to_numpy(), found.values[0])


@pytest.mark.parametrize(("call", "message"), [
    (lambda lab: lab.tensor("alpha", "q", layer=[0, 3]), "no layer 3 in this run\nThere are: 0-2"),
    (lambda lab: lab.tensor("alpha", "q", layer=[]), "each layer has its own q\nName one"),
    (lambda lab: lab.activations("alpha", "queries"), "no site 'queries' in this run\nThere are: hidden_in"),
    (lambda lab: lab.activations("alpha", "q", [0, 7]), "no layer 7 in this run"),
    (lambda lab: lab.activations("gamma", "q"), "no run 'gamma'"),
    (lambda lab: lab.activations("alpha", "attention"), "no one array\nAsk for one pass: lab.tensor"),
    (lambda lab: lab.vector("alpha", "q", 0, state="example"), "no site 'q'"),
    (lambda lab: lab.vector("alpha", "hidden_in", 0, state="example"), "no example without a name .*\nThere are: 1, 2, 3"),
    (lambda lab: lab.vector("alpha", "hidden_in", 0, state="example", example=0), "no example 0 .*\nThere are: 1, 2, 3"),
    (lambda lab: lab.vector("alpha", "hidden_in", 0, state="example", example=1, label="joy"), "There are: $"),
])  # fmt: skip
def test_what_does_not_exist_is_named(lab, call, message):
    with pytest.raises(AlabError, match=message):
        call(lab)


def test_a_layer_without_the_site(lake):
    run_id = make_run(lake, "one", Shape(sites=("hidden_out",)))
    catalog.sync(lake)
    lab = warehouse.open(lake.warehouse)
    with pytest.raises(AlabError, match="no site 'q' in this run"):
        lab.activations(run_id, "q")
