"""What a dataset's capture was begun with, so that nobody goes on with another one."""

import hashlib
import json
from typing import Any

import torch
import transformers

from warehouse.capture.dataset_prompts import DatasetPrompts
from warehouse.capture.plan import Plan
from warehouse.errors import AlabError
from warehouse.models.loading import Loaded

#: What a capture that goes on needs to find as it was.
_UNCHANGED = {
    "scenario": "the scenario",
    "dataset": "the dataset",
    "tokens": "the prompts' tokens (the model's tokenizer, or its chat template)",
    "weights": "the model's weights",
    "config": "the model's configuration",
    "torch": "the version of torch",
    "transformers": "the version of transformers",
}
#: Keys of a configuration that say nothing about what a model computes; `dtype` is recorded apart.
_APART = (
    *("architectures", "dtype", "torch_dtype", "id2label", "label2id", "name_or_path"),
    *("problem_type", "return_dict", "transformers_version", "use_cache"),
)


def request_of(plan: Plan, prompts: DatasetPrompts) -> dict[str, Any]:
    """What a capture is begun with, as it is kept until it ends."""
    return {
        "scenario": plan.scenario.model_dump(mode="json"),
        "dataset": prompts.dataset.digest,
        "tokens": prompts.digest(),
        "weights": plan.loaded.weights_hash,
        "config": _config_of(plan.loaded),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def changed(begun: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """What is not as it was when a capture was begun, in words; None where nothing is."""
    return next((what for key, what in _UNCHANGED.items() if begun.get(key) != asked[key]), None)


def refuse_changes(run_id: str, begun: dict[str, Any], asked: dict[str, Any], instead: str) -> None:
    """Refuse to go on with a run where what was asked for is not what it was begun with."""
    if what := changed(begun, asked):
        raise AlabError(
            f"{what} changed since {run_id} was begun",
            f"{instead}; what there is of it goes with: alab rm {run_id}",
        )


def _config_of(loaded: Loaded) -> str:
    """Digest of a model's configuration: of what it computes, not of how it answers."""
    said = loaded.model.config.to_dict()
    own = {
        key: value
        for key, value in said.items()
        if key not in _APART and not key.startswith(("_", "output_"))
    }
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()
