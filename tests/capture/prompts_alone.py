"""Datasets of random texts, and what a prompt of one gives that is read alone, by plain hooks: rows against that."""

import random
from functools import partial

import numpy as np
import pyarrow as pa
import tiny
import torch
from captures import loaded

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
        letters = [*rng.choice("abc"), *rng.choices(LETTERS, k=n % longest)]  # never a blank alone
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
