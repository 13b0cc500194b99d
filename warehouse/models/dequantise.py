"""The dequantised copy of a GGUF file: made once, kept in the user's cache, checked each time."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from warehouse.errors import AlabError
from warehouse.models import weights
from warehouse.models.fingerprint import fingerprint

#: Part of what a copy is known by: copies made otherwise are made anew.
_FORMAT = 2
_ABOUT = "alab.json"
#: Says on standard error, where no program has said otherwise, that a first reading takes long.
_LOG = logging.getLogger(__name__)


@dataclass
class Copy:
    """A dequantised copy.

    Attributes:
        folder: where it is.
        weights_hash: fingerprint of its weights in float32.
        notes: what the loading report said when it was made, as (code, sentence).
    """

    folder: str
    weights_hash: str
    notes: list[tuple[str, str]]

    def check(self, weights_hash: str) -> None:
        """Refuse a copy whose weights are no longer those of the GGUF file."""
        if weights_hash != self.weights_hash:
            raise AlabError(
                f"the dequantised weights in {self.folder} are damaged: they are not those that "
                "were read",
                "Delete that folder and try again: it is made anew from the GGUF file.",
            )


def copy_of(source: str, gguf: str, revision: str | None = None) -> Copy:
    """The dequantised weights of a GGUF file, made where they are not there yet.

    Reading the file costs many seconds each time; the copy, float32 and therefore exact, opens in
    one. It is known by the file's content and the reader's version. Files that are missing or of
    another size make it be made anew. `$ALAB_CACHE` moves the cache.

    Raises:
        AlabError: the file lacks weights of the model.
    """
    import gguf as reader
    import transformers

    path = Path(source) / gguf
    if not path.is_file():  # a hub id: let transformers fetch the file first
        from transformers.utils import cached_file

        path = Path(str(cached_file(source, gguf, revision=revision)))
    key = hashlib.sha256(
        f"{_FORMAT} {transformers.__version__} {getattr(reader, '__version__', '')}".encode()
    )
    with path.open("rb") as file:
        key.update(hashlib.file_digest(file, "sha256").digest())
    folder = _cache() / "models" / f"{path.stem}-{key.hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        about = _about(folder)
        if about is None:
            _LOG.warning(
                "reading %s for the first time; its weights are kept in %s", path.name, folder
            )
            unfinished = folder.with_suffix(".part")
            for remains in (unfinished, folder):
                shutil.rmtree(remains, ignore_errors=True)
            about = _make(path, unfinished)
            unfinished.rename(folder)
    return Copy(str(folder), about["weights_hash"], [tuple(note) for note in about["notes"]])


def _cache() -> Path:
    """The user's cache of alab."""
    if own := os.environ.get("ALAB_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alab"


def _about(folder: Path) -> dict[str, Any] | None:
    """What a copy says of itself; None where it, or a file of it, is missing or cut short."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        whole = about["files"] == _sizes(folder) and isinstance(about["notes"], list)
        if whole and about["weights_hash"]:
            return about
    return None


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != _ABOUT)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _make(path: Path, folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    with contextlib.suppress(ImportError):  # a transformers that could compute on packed weights
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    model, report = weights.load_strictly(AutoModelForCausalLM, path.parent, **options)
    notes = weights.check(model, report, str(path)) + _unread(path, model)
    # The weights are plain float32 now, but transformers refuses to save what was quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    about = {"notes": notes, "weights_hash": fingerprint(model), "files": _sizes(folder)}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    return about


def _unread(path: Path, model: Any) -> list[tuple[str, str]]:
    """A note about tensors that transformers has no place for, where it does not report them."""
    from gguf import GGUFReader
    from transformers import modeling_gguf_pytorch_utils as gguf_reader

    file = GGUFReader(path)
    arch = file.fields["general.architecture"].contents()
    with contextlib.suppress(Exception):  # its own tables, which change with its version
        with contextlib.suppress(ImportError):  # a transformers that reports none itself
            from transformers.integrations.gguf.utils import is_gguf_arch_supported

            if is_gguf_arch_supported(arch):
                return []
        rules = gguf_reader.TENSOR_PROCESSORS.get(arch, gguf_reader.TensorProcessor)(config={})
        known = gguf_reader.get_gguf_hf_weights_map(model, rules)
        unread = [tensor.name for tensor in file.tensors if tensor.name not in known]
        return weights.left_out(unread, path.name, model)
    return []
