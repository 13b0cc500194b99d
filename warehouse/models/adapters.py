"""Adapters of PEFT, such as LoRA, that a scenario puts on a model: `model.adapter`."""

import json
from pathlib import Path
from typing import Any

import torch

from warehouse.errors import AlabError, first_line
from warehouse.models.weights import listed

#: The file that makes a directory an adapter.
CONFIG = "adapter_config.json"


def attach(
    model: Any, adapter: str, model_id: str, commit: str | None = None
) -> tuple[Any, list[tuple[str, str]]]:
    """Put an adapter, a directory or hub id, on a model of a commit of the hub, switched on.

    Returns:
        The model, its modules wrapped by PEFT, and notes as (code, sentence).

    Raises:
        AlabError: PEFT is not installed, or the adapter cannot be read, does not fit, or changes
            more than weights.
    """
    try:
        import peft
    except ImportError as error:
        raise AlabError(
            "model.adapter needs the package peft", "Install it: pip install 'alab[peft]'"
        ) from error
    local = Path(adapter).expanduser()
    folder = str(local) if local.is_dir() else adapter
    if not local.is_dir() and adapter.startswith((".", "/", "~")):
        raise AlabError(f"model.adapter: there is no directory {adapter}")
    try:
        config = peft.PeftConfig.from_pretrained(folder)
    except Exception as error:  # whatever is in its files
        raise AlabError(
            f"model.adapter: cannot read the adapter {adapter}: {first_line(error)}",
            f"Name a directory with {CONFIG}, or a hub id (needs a connection).",
        ) from error
    if config.is_prompt_learning or config.task_type not in (None, "CAUSAL_LM"):
        kind = f"{getattr(config.peft_type, 'value', config.peft_type)} for {config.task_type}"
        raise AlabError(
            f"model.adapter: {adapter} is {kind}; alab puts on adapters of a causal language "
            "model's weights",
            "Such as LoRA for CAUSAL_LM. A model that has another on it is captured with "
            "warehouse.record.",
        )
    try:
        wrapped = peft.PeftModel.from_pretrained(model, folder, config=config).eval()
        _check(wrapped, folder, adapter)
    except AlabError:
        raise
    except Exception as error:  # shapes that do not fit, modules that are not there, damaged files
        raise AlabError(
            f"model.adapter: {adapter} does not fit {model_id}: {first_line(error)}",
            _made_for(config),
        ) from error
    return wrapped.get_base_model(), _base_notes(config, adapter, model_id, commit)


def base_of(folder: Path) -> str | None:
    """The model that an adapter's directory names; empty if it names none, None for no adapter."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return config.get("base_model_name_or_path") or ""
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        return ""


def refuse_as_model(adapter: str, base: str) -> AlabError:
    """The error for an adapter that is named where a model belongs."""
    return AlabError(
        f"model.id: {adapter} holds an adapter{f' of {base}' if base else ''}, not a model of its "
        "own",
        f"Name both:  model: {{id: {base or 'MODEL'}, adapter: {adapter}}}",
    )


def _check(wrapped: Any, folder: str, adapter: str) -> None:
    """Make sure that each weight of the adapter is as its file has it, and none is left over."""
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    weights = load_peft_weights(folder, device="cpu")
    own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    everywhere = wrapped.state_dict()
    if missing := own.keys() - weights.keys():
        raise AlabError(
            f"model.adapter: {adapter} lacks {len(missing)} of the {len(own)} weights that its "
            f"config asks for: {listed(missing)}",
            "They would be random numbers, or nothing. Get the whole adapter.",
        )
    if nowhere := weights.keys() - own.keys() - everywhere.keys():
        raise AlabError(
            f"model.adapter: {len(nowhere)} of the {len(weights)} weights of {adapter} fit nowhere "
            f"in the model: {listed(nowhere)}",
            _made_for(wrapped.peft_config["default"]),
        )
    loaded = everywhere | own
    if other := [name for name, value in weights.items() if not _same(loaded[name], value)]:
        loaded_otherwise = f"{len(other)} weights of {adapter} otherwise: {listed(other)}"
        raise AlabError(f"model.adapter: PEFT loaded {loaded_otherwise}")


def _same(loaded: torch.Tensor, saved: torch.Tensor) -> bool:
    return loaded.is_meta or torch.equal(loaded.cpu(), saved.to(loaded.dtype).cpu())


def _made_for(config: Any) -> str:
    return f"It was made for {config.base_model_name_or_path or 'another model'}."


def _base_notes(
    config: Any, adapter: str, model_id: str, commit: str | None
) -> list[tuple[str, str]]:
    base, revision = config.base_model_name_or_path, getattr(config, "revision", None)
    if base and not _is_same_model(base, model_id):
        origin, target = base, model_id
    elif revision and commit and revision != commit:
        origin, target = f"revision {revision} of {base}", commit
    else:
        return []
    sentence = f"the adapter {adapter} was made for {origin}; it was put on {target}"
    return [("adapter_base", sentence)]


def _is_same_model(base: str, model_id: str) -> bool:
    paths = [Path(name).expanduser() for name in (base, model_id)]
    return base == model_id or (
        all(path.exists() for path in paths) and paths[0].samefile(paths[1])
    )
