"""A dataset's run: every stored row is its own prompt's, whatever it was read together with."""

import copy
import random
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from captures import loaded, rows

import warehouse
from warehouse import scenario
from warehouse.capture.dataset_run import capture_dataset
from warehouse.models import sites

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ0123456789.,éß"
TEXT = "{{ head }}{{ word }}{{ tail }}"
MESSAGES = [
    {"role": "system", "content": "{{ head }}."},
    {"role": "user", "content": "Is it {{ word }}{{ tail }}"},
]


def make(name: str = "d", dataset: dict | None = None, **capture) -> scenario.Scenario:
    return scenario.parse(
        {
            "name": name,
            "model": {"id": "tiny", "dtype": "float32", "device": "cpu"},
            "prompt": {"dataset": {"text": TEXT} | (dataset or {})},
            "capture": {"store_dtype": "float32"} | capture,
        }
    )


def table(count: int = 120, longest: int = 40, seed: int = 0) -> pa.Table:
    """Shuffled rows of 1 to `longest` letters, a quarter of them with the text of another."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        letters = [rng.choice(LETTERS) for _ in range(1 + n % longest)]
        first, last = sorted(rng.choices(range(len(letters)), k=2))
        parts = letters[:first], letters[first : last + 1], letters[last + 1 :]
        rows.append(tuple("".join(part) for part in parts))
        if n % 4 == 3:
            rows[-1] = rng.choice(rows)
    rng.shuffle(rows)
    columns = dict(zip(("head", "word", "tail"), zip(*rows, strict=True), strict=True))
    return pa.table(columns | {"n": range(count), "even": [n % 2 == 0 for n in range(count)]})


def capture(lake, model, request, source, **options) -> str:
    """Capture with a model of transformers, a family's name, or a pair that was made ready."""
    if not isinstance(model, tuple):
        model = tiny.model_of(model) if isinstance(model, str) else model
        model = loaded(model), sites.discover(model, sharing=False, batches=True)
    return capture_dataset(request, *model, lake, source=source, **options)


# What a prompt alone gives, by plain hooks: module below a layer, side, and what of it a site is.
_LLAMA = {
    "q": ("self_attn.q_proj", "output", None),
    "mlp_act": ("mlp.down_proj", "input", None),
    "attn_out": ("self_attn.o_proj", "output", None),
}
_HEADS = (4, 3, 8)
PLACES = {
    "llama": ("model.layers", _LLAMA),
    "gemma2": ("model.layers", _LLAMA | {"attn_out": ("post_attention_layernorm", "output", None)}),
    "mixtral": ("model.layers", {name: _LLAMA[name] for name in ("q", "attn_out")}),
    "qwen3_next": ("model.layers", {}),
    "mixing": ("model.layers", {"mlp_down_out": ("mlp", "output", None)}),
    "gpt2": (
        "transformer.h",
        {
            "q": ("attn.c_attn", "output", lambda rows: rows[:, :32]),
            "mlp_act": ("mlp.c_proj", "input", None),
            "attn_out": ("attn.c_proj", "output", None),
        },
    ),
    "bloom": (
        "transformer.h",
        {
            "q": (
                "self_attention.query_key_value",
                "output",
                lambda rows: rows.reshape(-1, *_HEADS)[:, :, 0].reshape(-1, 32),
            ),
            "mlp_act": ("mlp.dense_4h_to_h", "input", None),
            "attn_out": ("self_attention.dense", "output", None),
        },
    ),
    "mpt": (
        "transformer.blocks",
        {
            "q": ("attn.Wqkv", "output", lambda rows: rows[:, :32]),
            "mlp_act": ("ffn.down_proj", "input", None),
            "attn_out": ("attn.out_proj", "output", None),
        },
    ),
}  # fmt: skip


@torch.no_grad()
def alone(model, name: str, ids: list[int]) -> dict:
    """Every tensor of a prompt by (site, layer), by hooks of plain torch and nothing of ours."""
    path, places = PLACES[name]
    values: dict = {}

    def note(key, side, cut, module, args, output):
        value = args[0] if side == "input" else output
        value = (value[0] if isinstance(value, tuple) else value).detach()
        value = value.reshape(-1, value.shape[-1]).clone()
        values[key] = cut(value) if cut else value

    handles = [model.get_input_embeddings().register_forward_hook(
        partial(note, ("embeddings", None), "output", None)
    )]  # fmt: skip
    for n, block in enumerate(model.get_submodule(path)):
        handles.append(
            block.register_forward_hook(partial(note, ("hidden_out", n), "output", None))
        )
        for site, (inner, side, cut) in places.items():
            hook = partial(note, (site, n), side, cut)
            handles.append(block.get_submodule(inner).register_forward_hook(hook))
    first = model.get_submodule(path)[0]
    handles.append(
        first.register_forward_pre_hook(
            lambda module, args, kwargs: values.update(
                {("hidden_in", 0): (args[0] if args else kwargs["hidden_states"])[0].clone()}
            ),
            with_kwargs=True,
        )
    )
    try:
        output = model(torch.tensor([ids]), output_attentions=True, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    values["logits", None] = output.logits[0]
    kinds = getattr(model.config, "layer_types", None) or ["full"] * len(output.attentions)
    ours = [n for n, kind in enumerate(kinds) if kind != "linear_attention"]
    for n, weights in zip(ours, output.attentions, strict=True):
        values["attention", n] = weights[0]
    return values


def close(value, expected, what) -> None:
    # A recurrent layer sums over the width of the pass: of rows that no sample has, some round more.
    tolerance = 5e-5 if what[0] == "qwen3_next" else 1e-5
    expected = np.asarray(expected, np.float32)
    assert value.shape == expected.shape, what
    apart, size = np.linalg.norm(value - expected), np.linalg.norm(expected)
    assert apart <= tolerance * size, (what, apart / size)


SITES = ["hidden_out", "q", "mlp_act", "attn_out", "attention", "logits", "embeddings"]


def check_rows(lake, run_id: str, name: str, model, source: pa.Table, messages: bool) -> None:
    """Compare all that a run keeps with each prompt read alone."""
    tokenizer = tiny.tokenizer()
    lab = warehouse.open(lake.warehouse)
    prompts = []
    for row in source.to_pylist():
        head, word, tail = (tokenizer(row[key])["input_ids"] for key in ("head", "word", "tail"))
        if messages:
            begin = tokenizer(f"<|system|>{row['head']}.<|end|><|user|>Is it ")["input_ids"]
            ids = [*begin, *word, *tail, *tokenizer("<|end|><|assistant|>")["input_ids"]]
            ends = [len(head) + 1, len(begin) + len(word) + len(tail) - 1]
            places = {"word": len(begin) + len(word) - 1, "message_ends": ends}
        else:
            ids = [*head, *word, *tail]
            places = {"word": len(head) + len(word) - 1}
        prompts.append((ids, places, alone(model, name, ids)))
    where = {"last", "all", "message_ends", "word"} if messages else {"last", "all", "word"}
    kept = lab.sql(
        "select prompt_id, selector, position from positions where run_id = $run", run=run_id
    ).fetchall()
    expected = set()
    for n, (ids, places, _) in enumerate(prompts):
        expected |= {(n, "last", len(ids) - 1), (n, "word", places["word"])}
        expected |= {(n, "all", place) for place in range(len(ids))}
        expected |= {(n, "message_ends", place) for place in places.get("message_ends", ())}
    assert len(kept) == len(set(kept)) and set(kept) == expected
    tokens = dict(
        lab.sql(
            "select prompt_id, list(token_id order by position) from tokens where run_id = $run group by 1",
            run=run_id,
        ).fetchall()
    )
    assert [tokens[n] for n in range(len(prompts))] == [ids for ids, _, _ in prompts]
    compared = {site for _, _, values in prompts for site, _ in values}
    layers = sorted({layer for _, layer in prompts[0][2] if layer is not None})
    for layer in layers:
        for site in ("hidden_out", "q", "mlp_act", "attn_out"):
            if (site, layer) not in prompts[0][2]:
                continue
            for selector in where:
                vectors, labels = lab.matrix(run_id, site, layer, selector)
                numbers, at = (labels[c].to_pylist() for c in ("prompt_id", "position"))
                for vector, n, place in zip(vectors, numbers, at, strict=True):
                    what = name, site, layer, selector, n, place
                    close(vector, prompts[n][2][site, layer][place], what)
                assert labels["n"].to_pylist() == [source["n"][n].as_py() for n in numbers]
            if site in ("hidden_out", "attn_out"):
                vectors, labels = lab.matrix(run_id, site, layer, "mean")
                assert labels["prompt_id"].to_pylist() == list(range(len(prompts)))
                for n, vector in enumerate(vectors):
                    own = prompts[n][2][site, layer].double().mean(0)
                    close(vector, own, (name, site, layer, "mean", n))
        stored = lab.sql(
            "select prompt_id, head, position, weights from attention where run_id = $run and layer = $layer",
            run=run_id, layer=layer,
        ).fetchall()  # fmt: skip
        if ("attention", layer) in prompts[0][2]:
            assert len(stored) == 4 * sum(len(ids) for ids, _, _ in prompts)
        for n, head, place, weights in stored:
            own = prompts[n][2]["attention", layer][head, place]
            close(np.array(weights, np.float32), own[: place + 1], (name, layer, n, head, place))
    vectors, _ = lab.matrix(run_id, "hidden_in", 0, "mean")
    for n, vector in enumerate(vectors):
        close(vector, prompts[n][2]["hidden_in", 0].double().mean(0), (name, "read", n))
    stored = lab.sql(
        "select prompt_id, position, embeddings, logits from outputs where run_id = $run",
        run=run_id,
    ).fetchall()
    assert len(stored) == sum(len(ids) for ids, _, _ in prompts)
    for n, place, *values in stored:
        for site, value in zip(("embeddings", "logits"), values, strict=True):
            own = prompts[n][2][site, None][place]
            close(np.array(value, np.float32), own, (name, site, n, place))
    assert compared >= {"hidden_out", "logits", "embeddings", "hidden_in"}


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
