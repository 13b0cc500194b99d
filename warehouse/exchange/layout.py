"""The layout of arrays that `alab export` writes and `alab import` reads.

It is that of scripts which hook a model and save a file for each forward pass:

    run.json                 the run: model, scenario, prompts, messages, tokens, layers, sites, …
    steps.json               an object per pass: what `steps` says, `top_tokens`, and its `file`
    tensors/step_000.npz     the tensors of a pass, keys such as layer_07/hidden_out
    conversation_snapshots/  index.json, snapshot_00_system.npz, …: states after each message
    references/              index.json, ref_joy.npz, …: states after each reference
    examples/                index.json, example_003_joy.npz, …: what a reference is the mean of
    states/                  index.json, initial.npz, final.npz: where comparisons begin and end
    logit_lens/              hidden_out.json: what each layer would say next

- The logit lens is as `warehouse.exchange.lens_json` has it.
- `layer_NN/<site>` is shaped (1, tokens, width); `mlp_act` is the lake's `mlp_down_in`.
- `layer_NN/attn_weights` is shaped (1, heads, tokens, keys): keys = tokens in a prefill, 0 above
  the diagonal.
- `embeddings` and `logits` are shaped (1, tokens, width); a row of NaN is a token whose logits were
  not computed.
- Snapshots, references and states are last-token vectors, shaped (width,).
- Values have the run's `store_dtype`. Where numpy has no such type (bfloat16), or where the run
  kept values that lie outside its range, they are float32, so nothing is lost.
- Conversations after the first have a folder of their own: tensors/prompt_001/step_000.npz.
- `npy` has a folder step_000/ with a file layer_07/hidden_out.npy for each array.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, count, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from warehouse.catalog.runs import Run, Selection, sources
from warehouse.exchange import lens_json
from warehouse.exchange.arrays import SUFFIXES, ArrayWriter, Spec
from warehouse.lake import store
from warehouse.lake.tensors import PassId, Source, blocks
from warehouse.vocabulary import key_of, site_of

#: Tables that `run.json` holds as lists.
RUN_TABLES = ("prompts", "messages", "tokens", "state_tokens", "layers", "sites", "warnings")
#: Columns of `runs` that hold an object, and where `run.json` has it.
OBJECTS = {"scenario_json": "config", "env_json": "environment", "tokenizer_json": "tokenizer"}
#: Folder of each kind of state.
FOLDERS = {
    "snapshot": "conversation_snapshots",
    "reference": "references",
    "example": "examples",
    "initial": "states",
    "final": "states",
}
#: Files that are open at once; a run with more passes is written in several rounds.
OPEN_FILES = 64

_HALF, _SINGLE = np.dtype("<f2"), np.dtype("<f4")


def write(run: Run, out: Path, fmt: str, selection: Selection) -> None:
    """Write a run in the format npz, npy or safetensors."""
    (record,) = run.rows("runs")
    small = _HALF if record["store_dtype"] == "float16" else _SINGLE
    steps = run.rows("steps")
    top = {
        at: [_without(row, "prompt_id", "step") for row in rows]
        for at, rows in groupby(run.rows("top_tokens"), key=_at)
    }
    passes = [_at(row) for row in steps if selection.step(row["step"])]
    _write_tensors(run, out, fmt, selection, passes, small)
    for row in steps:  # a pass of which nothing was wanted has no file
        file = f"{_stem(*_at(row))}{SUFFIXES[fmt]}"
        row["top_tokens"] = top.get(_at(row), [])
        row["file"] = file if (out / file).exists() else None
    _write_json(out / "steps.json", steps)
    folders = _write_states(run, out, fmt, selection, small)
    folders += _write_lens(run, out, selection, record["model_id"])
    parsed = {key: json.loads(record[column] or "null") for column, key in OBJECTS.items()}
    tables = {table: run.rows(table) for table in RUN_TABLES}
    head = {"run_id": run.run_id, "folders": folders}
    _write_json(out / "run.json", head | _without(record, "bytes") | parsed | tables)


def _at(row: dict) -> PassId:
    return row["prompt_id"], row["step"]


def _without(row: dict, *keys: str) -> dict:
    return {key: value for key, value in row.items() if key not in keys}


def _folder(prompt_id: int | None) -> str:
    return f"prompt_{prompt_id:03d}/" if prompt_id else ""


def _stem(prompt_id: int, step: int) -> str:
    return f"tensors/{_folder(prompt_id)}step_{step:03d}"


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, indent=1, default=lambda time: time.isoformat())
    path.write_text(text, encoding="utf-8")


def _write_tensors(
    run: Run, out: Path, fmt: str, selection: Selection, passes: list[PassId], small: np.dtype
) -> None:
    outside = {(row["layer"], row["site"]) for row in run.rows("sites") if row["n_out_of_range"]}
    plan = []
    for _, layer, source in sources(run, selection):
        for column in filter(selection.site, source.columns):
            site = site_of(column)
            assert site is not None  # each vector column of these datasets is a site's
            key = ("" if layer is None else f"layer_{layer:02d}/") + key_of(site)
            plan.append((key, column, source, _SINGLE if (layer, site.name) in outside else small))
    for start in range(0, len(passes), OPEN_FILES):
        specs: dict[PassId, dict[str, Spec]] = {}
        with ExitStack() as stack:
            writers = {}
            for at in passes[start : start + OPEN_FILES]:
                specs[at] = {
                    key: Spec(dtype, _shape(source, column, at))
                    for key, column, source, dtype in plan
                    if at in source.span
                }
                if specs[at]:
                    writer = ArrayWriter(out / _stem(*at), fmt, specs[at])
                    writers[at] = stack.enter_context(writer)
            for key, column, source, dtype in plan:
                for at, rows in groupby(source.read(column, set(writers)), key=itemgetter(0)):
                    with writers[at].array(key) as stream:
                        for _, values in rows:
                            for block in blocks(values, specs[at][key].shape[-1]):
                                stream.write(np.ascontiguousarray(block, dtype).data)


def _shape(source: Source, column: str, at: PassId) -> tuple[int, ...]:
    first, last = source.span[at]
    tokens = last - first + 1
    if (width := source.columns[column]) is not None:
        return 1, tokens, width
    return 1, source.count[at] // tokens, tokens, last + 1


def _write_lens(run: Run, out: Path, selection: Selection, model: str) -> list[str]:
    """Write a JSON file per site of the logit lens; gives their folder where there are any."""
    if not (paths := run.files.get(("logit_lens", None))):
        return []
    has_head = "SELECT 1 WHERE _has('models', _weights_key(?))"
    texts = "SELECT token_id, token FROM unembedding_of(?)"
    names = {}
    if run.db.execute(has_head, [run.run_id]).fetchone():
        names = dict(run.db.execute(texts, [run.run_id]).fetchall())
    (out / "logit_lens").mkdir()
    for path in paths:
        site = path.name.split(".")[0]
        rows = [
            row
            for row in lens_json.rows_of(path)
            if selection.step(row["step"]) and selection.layer(row["layer"])
        ]
        top_k = 1 + max((row["rank"] for row in rows), default=-1)
        about = {"run_id": run.run_id, "model": model, "site": site, "top_k": top_k}
        lens_json.write(out / "logit_lens" / f"{site}.json", about, rows, names)
    return ["logit_lens"]


def _write_states(
    run: Run, out: Path, fmt: str, selection: Selection, small: np.dtype
) -> list[str]:
    """Write a file per state, and in each folder an index of its files; gives the folders."""
    snapshots = {(row["prompt_id"], row["message_index"]): row for row in run.rows("snapshots")}
    references = {row["label"]: row for row in run.rows("reference_states")}
    indexes: dict[str, list[dict]] = {}
    for (prompt_id, state, index, label), vectors in _states(run, selection):
        if not vectors:
            continue
        if state == "snapshot":
            row = snapshots[prompt_id, index]
            name = f"{_folder(prompt_id)}snapshot_{index:02d}_{row['role'] or 'message'}"
        elif state == "reference":
            row = references[label]
            row["messages"] = json.loads(row["messages"] or "null")
            taken = {entry["file"] for entry in indexes.get("references", [])}
            stem = f"ref_{_safe(label)}"
            names = chain([stem], (f"{stem}_{n}" for n in count(2)))
            name = next(name for name in names if name + SUFFIXES[fmt] not in taken)
        elif state == "example":
            row = {"label": label, "state_index": index}
            name = f"example_{index:03d}_{_safe(label)}"
        else:
            row = {"prompt_id": prompt_id, "state": state, "state_index": index}
            name = f"{_folder(prompt_id)}{state}"
        values = {key: vector.astype(_fitting(vector, small)) for key, vector in vectors.items()}
        specs = {key: Spec(vector.dtype, vector.shape) for key, vector in values.items()}
        with ArrayWriter(out / FOLDERS[state] / name, fmt, specs) as writer:
            for key, vector in values.items():
                with writer.array(key) as stream:
                    stream.write(vector.data)
        indexes.setdefault(FOLDERS[state], []).append(row | {"file": name + SUFFIXES[fmt]})
    for folder, index in indexes.items():
        _write_json(out / folder / "index.json", index)
    return list(indexes)


def _states(run: Run, selection: Selection) -> Iterator[tuple[tuple, dict[str, np.ndarray]]]:
    """Each state of the run as ((prompt_id, state, state_index, label), vectors by key)."""

    def rows():
        for path in run.files.get(("states", None), []):
            for batch in store.parquet(path).iter_batches(512):
                vectors = batch.column("vector").flatten().to_numpy().reshape(batch.num_rows, -1)
                yield from zip(batch.drop_columns(["vector"]).to_pylist(), vectors, strict=True)

    for at, group in groupby(rows(), key=lambda item: tuple(list(item[0].values())[:4])):
        vectors = {
            f"layer_{row['layer']:02d}/{row['site']}": vector
            for row, vector in group
            if selection.site(row["site"]) and selection.layer(row["layer"])
        }
        yield at, vectors


def _fitting(vector: np.ndarray, small: np.dtype) -> np.dtype:
    """The stored type, or float32 where a value lies outside its range."""
    finite = vector[np.isfinite(vector)]
    return _SINGLE if finite.size and np.abs(finite).max() > np.finfo(small).max else small


def _safe(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", label)
