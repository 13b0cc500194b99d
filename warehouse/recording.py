"""Captures a model that is loaded already, from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warehouse import models, scenario, sites
from warehouse.capture import capture_one
from warehouse.lake import Lake


def record(
    model: Any, tokenizer: Any, messages: Sequence[dict[str, str]], *, warehouse: Path | str = "lab",
    name: str = "recorded", generation: dict | None = None, capture: dict | None = None,
    reference_states: Sequence[dict] = (), force: bool = False,
) -> str:  # fmt: skip
    """Run a conversation through a loaded model and keep every tensor.

    Args:
        model: a causal language model of transformers, on its device; used in evaluation mode.
        tokenizer: its tokenizer.
        messages: the conversation, each message with `role` and `content`.
        warehouse: directory of the warehouse.
        name: what the run's id begins with.
        generation: as in a scenario, such as `{"max_new_tokens": 20}`.
        capture: as in a scenario, such as `{"logits": False}`; attention weights are kept where the model uses
            eager attention, unless this says otherwise.
        reference_states: as in a scenario, each with `label` and `messages`.
        force: run although the disk looks too small.

    Returns:
        The run's id.

    Raises:
        AlabError: the conversation does not fit the model, or an option is not one of a scenario's.

    >>> lab.runs().fetchall()
    []
    >>> run = record(model, tokenizer, [{"role": "user", "content": "Hi"}], warehouse=folder,
    ...              generation={"max_new_tokens": 3})
    >>> lab.tensor(run, "hidden_out", layer=0, step=2).shape
    (1, 32)
    """
    dtype = str(model.dtype).removeprefix("torch.")
    model_id = getattr(model, "name_or_path", "") or type(model).__name__
    wanted = scenario.parse({
        "name": name, "model": {"id": model_id, "dtype": dtype, "device": model.device.type},
        "prompt": {"messages": list(messages)}, "generation": generation or {},
        "capture": {"attention_weights": uses_eager(model)} | (capture or {}),
        "reference_states": list(reference_states),
    }, "record")  # fmt: skip
    training = model.training
    model.eval()
    try:
        loaded = models.Loaded(model, tokenizer, model_id, dtype, model.device.type)
        return capture_one(wanted, loaded, sites.discover(model), Lake(warehouse), force=force)
    finally:
        model.train(training)


def uses_eager(model: Any) -> bool:
    """Whether a model computes attention in the one way that shows its weights."""
    return getattr(model.config.get_text_config(), "_attn_implementation", None) == "eager"
