"""The head of the weights that a run was captured with: from the lake, or from the model, and never another's."""

import json
from collections.abc import Callable
from typing import Any

import torch

from warehouse.catalog.runs import Run
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lens import head as heads
from warehouse.lens.head import Head
from warehouse.models.chat import Chat


def head_of(lake: Lake, run: Run, model: Any, progress: Callable[[str, int, int], None]) -> Head:
    """The head of the weights that the run was captured with, from the lake; the first time, from the model.

    It is kept by the fingerprint of the weights. Runs of alab 0.1 have none; theirs is kept by the
    model's name.

    Args:
        lake: the warehouse's lake.
        run: the run.
        model: a `models.Loaded` of the weights, where they cannot be loaded by the model's name; or
            None.
        progress: told of what is happening.

    Raises:
        AlabError: the model, given or loaded, has other weights than the run, or no logit lens.
    """
    (row,) = run.rows("runs")
    key = row["weights_hash"] or row["model_id"]
    head = heads.kept(lake, key)
    if model is not None and row["weights_hash"] and model.weights_hash != row["weights_hash"]:
        raise AlabError(
            f"the model that is given has other weights ({model.weights_hash}) than {run.run_id} was captured with "
            f"({row['weights_hash']})",
            "Give the model as it was then"
            + ("." if head is None else ", or none: what it takes is kept."),
        )
    spec = json.loads(row["scenario_json"] or "{}").get("model") or {
        "id": row["model_id"],
        "dtype": "float32",
    }
    full = "/".join(filter(None, [row["model_id"], spec.get("gguf_file")]))
    if head is None:
        model = model or _loaded(run.run_id, row, spec, progress)
        head = heads.find(model.model)
        head.model = full
        if model.tokenizer is not None:
            chat = Chat(model.tokenizer)
            head.tokens = [chat.token_text(i) or None for i in range(len(head.unembedding))]
        heads.keep(lake, key, head)
    elif row["weights_hash"] is None:
        if model is not None and not torch.equal(
            head.unembedding, heads.find(model.model).unembedding
        ):
            raise refused(lake, run, "are not those of the model that is given")
        if head.model != full:
            raise refused(lake, run, f"are those of {head.model}, not of {full}")
    if head.unembedding.shape[1] != row["hidden_size"]:
        raise refused(
            lake,
            run,
            f"are {head.unembedding.shape[1]} wide, the run's vectors {row['hidden_size']}",
        )
    return head


def _loaded(run_id: str, row: dict[str, Any], spec: dict[str, Any], progress: Callable) -> Any:
    """The model of a run, loaded again as it ran.

    Raises:
        AlabError: what its name stands for now has other weights.
    """
    from warehouse import scenario
    from warehouse.models import loading as models

    progress(f"loading {row['model_id']}, once", 0, 0)
    wanted = spec | {"device": "auto"}
    if row["weights_hash"]:  # the very numbers: the commit and the precision that ran
        wanted |= {"dtype": row["dtype"]} | (
            {"revision": row["revision"]} if row["revision"] else {}
        )
    exact = row["weights_hash"] is not None
    model = models.load(scenario.Model(**wanted), attention_weights=False, exact_dtype=exact)
    if exact and model.weights_hash != row["weights_hash"]:
        raise AlabError(
            f"{row['model_id']} has other weights by now than {run_id} was captured with "
            f"({row['weights_hash']} then, {model.weights_hash} now)",
            "From Python, give the model as it was then: open(...).logit_lens(RUN, model=..., tokenizer=...)",
        )
    return model


def refused(lake: Lake, run: Run, why: str) -> AlabError:
    """The error for a head that is kept and is not the run's."""
    (row,) = run.rows("runs")
    folder = lake.root / "models" / heads.key(row["weights_hash"] or row["model_id"])
    return AlabError(
        f"the final norm and unembedding kept of {row['model_id']} {why}",
        f"Delete {folder} and try again: they are taken from the model anew.",
    )
