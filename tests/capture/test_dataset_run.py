"""A dataset's run: every stored row is its own prompt's, whatever it was read together with."""

import copy
import random

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from captures import loaded, rows
from prompts_alone import MESSAGES, SITES, alone, capture, check_rows, close, make, table

import warehouse
from warehouse import errors
from warehouse.models import sites
from warehouse.models.probe import outputs_of

FAMILIES = ("llama", "gpt2", "gemma2", "bloom", "mpt", "mixtral", "qwen3_next")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("messages", [False, True], ids=["text", "messages"])
def test_every_row_is_its_prompt_alone(lake, monkeypatch, name, messages):
    if name == "gemma2":  # windows that are shorter than the prompts
        changed = tiny.FAMILIES[name] | {"sliding_window": 12}
        monkeypatch.setitem(tiny.FAMILIES, "gemma2:window", changed)
    model = tiny.model_of("gemma2:window" if name == "gemma2" else name)
    source = table(60 if messages else 100)
    positions = ["last", "word", "all", "mean", *(["message_ends"] if messages else [])]
    dataset = {"text": None, "messages": MESSAGES} if messages else None
    request = make(name, dataset, sites=[*SITES], positions=positions)
    run_id = capture(lake, model, request, source)
    ways = dict(rows(lake, "select way, count(*) from batches group by way"))
    said = {code for (code,) in rows(lake, "select code from warnings")}
    errors = [e for (e,) in rows(lake, "select batch_error from layers")]
    assert set(ways) == {"alone"} or max(errors) <= 1e-5
    assert "alone" not in ways or "batch" in said
    if name in ("llama", "gpt2", "gemma2", "mixtral"):
        assert set(ways) == {"batch"} and min(errors) >= 0
    check_rows(lake, run_id, name, model, source, messages)


class Mixing(torch.nn.Module):
    """An MLP whose rows leak into each other, in batches of more than `most`."""

    def __init__(self, mlp: torch.nn.Module, most: int):
        super().__init__()
        self.mlp, self.most = mlp, most

    def forward(self, states):
        values = self.mlp(states)
        if len(values) > self.most:
            values = values + 1e-3 * values.mean(0, keepdim=True)
        return values


@pytest.fixture
def mixing():
    """Makes a llama of which a layer mixes the rows of a batch."""
    model = copy.deepcopy(tiny.model_of("llama"))

    def make(most: int):
        model.model.layers[1].mlp = Mixing(model.model.layers[1].mlp, most)
        return model

    return make


@pytest.mark.parametrize("most", [1, 2, 8, 20])
def test_a_model_that_mixes_rows_is_read_one_by_one(lake, mixing, most):
    model, source = mixing(most), table(90)
    request = make(positions=["last", "mean"], sites=["hidden_out", "mlp_down_out", "logits"])
    run_id = capture(lake, model, request, source)
    ways = rows(lake, "select way, shard, batch, count(*) from batches group by all")
    assert {way == "batch" for way, _, _, count in ways if count <= most} <= {True}
    assert {way for way, _, _, count in ways if count > most} == {"alone"}
    said = rows(lake, "select message from warnings where code = 'batch'")
    assert said and all("one by one" in message for (message,) in said)
    errors = [error for (error,) in rows(lake, "select batch_error from layers")]
    assert max((error or 0.0) for error in errors) <= 1e-5
    residual = [error for (error,) in rows(lake, "select residual_error from layers")]
    assert all(error is None or error <= 1e-5 for error in residual)
    lab = warehouse.open(lake.warehouse)
    vectors, _ = lab.matrix(run_id, "hidden_out", 2)
    means, _ = lab.matrix(run_id, "mlp_down_out", 1, "mean")
    for n, row in enumerate(source.to_pylist()):
        ids = tiny.tokenizer()(row["head"] + row["word"] + row["tail"])["input_ids"]
        own = alone(model, "mixing", ids)
        close(vectors[n], own["hidden_out", 2][-1], ("mixing", n))
        close(means[n], own["mlp_down_out", 1].double().mean(0), ("mixing", "mean", n))


@pytest.fixture(scope="module")
def model():
    own = tiny.model_of("llama")
    return loaded(own), sites.discover(own, sharing=False, batches=True)


def texts(*values: str | None, **columns) -> pa.Table:
    """A table whose column `word` is all that is read."""
    empty = [""] * len(values)
    return pa.table({"head": empty, "word": pa.array(values, pa.string()), "tail": empty} | columns)


def ids_of(row: dict) -> list[int]:
    return tiny.tokenizer()(row["head"] + row["word"] + row["tail"])["input_ids"]


SOURCE = texts("one", "two", "three", n=[1, 2, 3], key=["a", "b", "a"])
REFUSED = {
    "no rows": ({"query": "from source where n > 3"}, {}, SOURCE, "no rows"),
    "failing query": ({"query": "select nothing from source"}, {}, SOURCE, "query: "),
    "a query of files": ({"query": "from read_csv('/etc/passwd')"}, {}, SOURCE, "query: "),
    "duplicate id": ({"id": "key"}, {}, SOURCE, "'a' in row 0 and in row 2"),
    "no such id": ({"id": "name"}, {}, SOURCE, "no column 'name'"),
    "no such group": ({"group": "name"}, {}, SOURCE, "no column 'name'"),
    "unknown field": ({"text": "{{ word }}{{ sort }}"}, {}, SOURCE, "no column 'sort'"),
    "broken template": ({"text": "{{ word"}, {}, SOURCE, "is no template"),
    "NULL": ({"id": "key"}, {}, texts("one", None, key=["a", "b"]), "row 'b': word is NULL"),
    "all NULL": ({"on_error": "skip"}, {}, texts(None, None), "none of its rows can be read"),
    "no words": ({}, {}, texts("one", " "), "row '1': the template gives no words"),
    "too long": ({"id": "key"}, {}, texts("one", "x" * 129, key=["a", "b"]), r"row 'b': 129 tokens .* 128"),
    "nested": ({"query": "select *, [n] as l from source"}, {}, SOURCE, "the nested type"),
    "interval": ({"query": "select *, interval 1 day as i from source"}, {}, SOURCE, "of the type"),
    "run_id": ({"query": "select *, 1 as RUN_ID from source"}, {}, SOURCE, "called RUN_ID"),
    "prompt_id": ({"query": "select *, 1 as prompt_id from source"}, {}, SOURCE, "called prompt_id"),
    "selector": ({}, {"positions": ["first"]}, SOURCE, "no selector 'first'"),
    "a column as selector": ({}, {"positions": ["n"]}, SOURCE, "no selector 'n'"),
    "a field that is empty": ({}, {"positions": ["head"]}, SOURCE, "where head stands"),
    "attributes": ({"text": "{{ word.__class__ }}"}, {}, SOURCE, "row '0': the template fails"),
    "layer": ({}, {"layers": [7]}, SOURCE, "no layer 7"),
    "no table": ({}, {}, 5, "int is no table"),
    "no source": ({}, {}, None, "no source"),
    "no file": ({"source": "nowhere.csv"}, {}, None, "no file nowhere.csv"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_clear_error_and_nothing_left(lake, model, case):
    dataset, options, source, words = REFUSED[case]
    with pytest.raises(errors.AlabError, match=words) as error:
        capture(lake, model, make(dataset=dataset, **options), source)
    assert error.value.exit_code == 2
    assert not lake.root.exists()


def test_rows_that_cannot_be_read_are_skipped_by_name(lake, model):
    source = texts("one", None, "x" * 129, " ", "two", "three", key=[*"abcdef"])
    dataset = {"id": "key", "on_error": "skip"}
    run_id = capture(lake, model, make(dataset=dataset, positions=["last", "word"]), source)
    assert rows(
        lake, "select prompt_id, message from warnings where code = 'skipped' order by 1"
    ) == [
        (1, "row 'b': word is NULL"),
        (2, "row 'c': 129 tokens are more than the model's context of 128"),
        (3, "row 'd': the template gives no words"),
    ]
    vectors, labels = warehouse.open(lake.warehouse).matrix(run_id, "hidden_out", 1)
    assert labels["key"].to_pylist() == ["a", "e", "f"]
    for vector, text in zip(vectors, ("one", "two", "three"), strict=True):
        own = alone(model[0].model, "llama", tiny.tokenizer()(text)["input_ids"])
        close(vector, own["hidden_out", 1][-1], ("llama", text))


def test_values_are_no_templates(lake, model):
    values = ["{{ n }}", "{% raw %}", "{{ word.__class__ }}", "\ue000x\ue800", "{# x #}", "\\n"]
    capture(lake, model, make(), texts(*values, n=range(len(values))))
    assert rows(lake, "select prompt_text from prompts order by prompt_id") == [
        (value,) for value in values
    ]


def test_the_mean_of_what_layer_0_reads_is_kept_whatever_the_layers(lake, model):
    source = table(30)
    run_id = capture(lake, model, make(layers=[2], sites=["hidden_out"]), source)
    assert rows(lake, "select distinct layer from activations") == [(2,)]
    assert rows(lake, "select distinct layer, site, state from states") == [
        (0, "hidden_in", "mean")
    ]
    lab = warehouse.open(lake.warehouse)
    means, labels = lab.matrix(run_id, "hidden_in", 0, "mean")
    vectors, _ = lab.matrix(run_id, "hidden_out", 2)
    assert labels["prompt_id"].to_pylist() == list(range(30))
    for n, row in enumerate(source.to_pylist()):
        own = alone(model[0].model, "llama", ids_of(row))
        close(means[n], own["hidden_in", 0].double().mean(0), ("llama", n))
        close(vectors[n], own["hidden_out", 2][-1], ("llama", n))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_values_are_rounded(lake, model, dtype):
    source = table(40)
    request = {"sites": ["hidden_out", "attn_out"], "positions": ["last", "mean"]}
    fine = capture(lake, model, make(**request), source)
    coarse = capture(lake, model, make(**request, store_dtype=dtype), source)
    lab, kind = warehouse.open(lake.warehouse), getattr(torch, dtype)
    for site, layer, selector in (
        ("hidden_out", 1, "last"),
        ("attn_out", 0, "last"),
        ("hidden_out", 2, "mean"),
    ):
        exact, _ = lab.matrix(fine, site, layer, selector)
        rounded, _ = lab.matrix(coarse, site, layer, selector)
        np.testing.assert_array_equal(rounded, torch.tensor(exact).to(kind).float().numpy())
        assert (rounded != exact).any()


@pytest.mark.parametrize("count", [2, 4])
def test_a_message_without_words_has_no_end(lake, model, count):
    """A prompt of which nothing is kept stands beside others, and alone, in every site."""
    user, reply = (
        MESSAGES[1] | {"content": "{{ word }}"},
        {"role": "assistant", "content": "x{{ tail }}"},
    )
    messages = [user] if count == 2 else [user, reply]
    source = pa.table({"word": ["ab", "", "abc", ""], "tail": ["", "x", "yz", "w" * 9]})
    request = make(
        dataset={"messages": messages, "text": None, "on_error": "skip"},
        positions=["message_ends", "mean"],
        sites=SITES,
    )
    run_id = capture(lake, model, request, source.slice(0, count))
    vectors, labels = warehouse.open(lake.warehouse).matrix(run_id, "q", 1, "message_ends")
    assert labels["prompt_id"].to_pylist() == ([0] if count == 2 else [0, 0, 1, 2, 2, 3])
    assert len(vectors) == len(labels)


def test_words_of_one_field_may_be_empty_where_its_end_is_not_asked_for(lake, model):
    messages = [
        {"role": "system", "content": "{{ head }}"},
        {"role": "user", "content": "{{ word }}"},
    ]
    source = pa.table({"head": ["", "a", ""], "word": ["x", "", "yz"]})
    request = make(
        dataset={"messages": messages, "text": None}, positions=["message_ends"], sites=SITES
    )
    run_id = capture(lake, model, request, source)
    _, labels = warehouse.open(lake.warehouse).matrix(run_id, "q", 1, "message_ends")
    assert labels["prompt_id"].to_pylist() == [0, 1, 2]


def test_frequencies_that_change_with_length_are_not_mixed(lake):
    """Beyond 24 tokens this model turns keys otherwise; no batch has prompts of both kinds."""
    own, source = tiny.model_of("phi3:longrope"), table(60)
    run_id = capture(lake, own, make(sites=["hidden_out"]), source)
    vectors, _ = warehouse.open(lake.warehouse).matrix(run_id, "hidden_out", 2)
    layer = own.model.layers[2]
    for n, row in enumerate(source.to_pylist()):
        with outputs_of([layer]) as outputs, torch.no_grad():
            own(torch.tensor([ids_of(row)]), use_cache=False)
        close(vectors[n], outputs[layer][0][0, -1], ("phi3", n))


def test_tensors_of_tokens_that_are_not_neighbours(lake, model):
    positions = {"positions": ["message_ends", "last"], "sites": SITES}
    request = make(dataset={"text": None, "messages": MESSAGES}, **positions)
    source = table(12)
    run_id = capture(lake, model, request, source)
    lab = warehouse.open(lake.warehouse)
    for n, row in enumerate(source.to_pylist()):
        text = f"<|system|>{row['head']}.<|end|><|user|>Is it {row['word']}{row['tail']}<|end|><|assistant|>"
        ids = tiny.tokenizer()(text)["input_ids"]
        own = alone(model[0].model, "llama", ids)
        query = "select distinct position from positions where prompt_id = ? order by 1"
        places = [place for (place,) in rows(lake, query, n)]
        for site, layer in (("hidden_out", 1), ("q", 0), ("logits", None)):
            value = lab.tensor(run_id, site, layer=layer, prompt=n)
            close(value, own[site, layer][places], ("llama", site, n))
        weights = lab.tensor(run_id, "attention", layer=1, prompt=n)
        close(weights, own["attention", 1][:, places], ("llama", "attention", n))
        whole = lab.activations(run_id, "hidden_out", 1, prompt=n)
        assert whole.tokens["position"].to_pylist() == places
        assert whole.tokens["token_id"].to_pylist() == [ids[place] for place in places]
        close(whole.values[0], own["hidden_out", 1][places], ("llama", "activations", n))


@pytest.mark.soak
def test_none_of_ten_thousand_rows_is_misattributed(lake, model):
    source = table(10_000, seed=5)
    ids = [f"row-{n}" for n in random.Random(1).sample(range(100_000), 10_000)]
    source = source.append_column("key", pa.array(ids))
    request = make(
        dataset={"id": "key"}, positions=["last", "word", "mean"], sites=["hidden_out", "q"]
    )
    run_id = capture(lake, model, request, source)
    lab = warehouse.open(lake.warehouse)
    last, labels = lab.matrix(run_id, "hidden_out", 2)
    fields, _ = lab.matrix(run_id, "q", 1, "word")
    means, _ = lab.matrix(run_id, "hidden_out", 1, "mean")
    assert labels.drop_columns(["prompt_id", "position"]).to_pydict() == source.to_pydict()
    names = dict(rows(lake, "select prompt_id, row_id from prompts"))
    assert [names[n] for n in range(10_000)] == ids
    for n, row in enumerate(source.to_pylist()):
        own = alone(model[0].model, "llama", ids_of(row))
        end = len(tiny.tokenizer()(row["head"] + row["word"])["input_ids"]) - 1
        close(last[n], own["hidden_out", 2][-1], ("llama", n))
        close(fields[n], own["q", 1][end], ("llama", n, "word"))
        close(means[n], own["hidden_out", 1].double().mean(0), ("llama", n, "mean"))
    assert max(error for (error,) in rows(lake, "select batch_error from layers")) <= 1e-5
