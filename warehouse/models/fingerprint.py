"""A fingerprint of the weights that ran: runs, heads and copies are known by it, not by a name."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from warehouse.models.offload import on_hand

#: Bytes that one thread hashes at a time.
_PIECE = 1 << 25


def fingerprint(model: nn.Module) -> str:
    """Fingerprint of a model's weights as they are now, 32 hexadecimal digits.

    It is made of the SHA-256 of every byte of every parameter and persistent buffer, with its name,
    precision and shape, so a change of a single value anywhere changes it. Weights on a GPU or
    offloaded to the disk are read from there; threads share the work, a core hashes one to two
    gigabytes a second. Equal weights have equal fingerprints on every device, with every kind of
    attention, however the modules wrap them: an adapter that is switched on is part of it, with its
    scaling, one that is off or merged is not (a merged one is in the weights).

    What it does not see: numbers of the config (such as the base of rotary positions), code,
    buffers that are computed, and hooks. The precision counts: weights loaded in float16 and in
    float32 are other numbers.
    """
    places = (v.data_ptr() for v in (*model.parameters(), *model.buffers()) if not v.is_meta)
    stay = set(places) - {0}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lines: list[str] = []
        known: dict[tuple, str] = {}
        for name, value in _values(model):
            if not isinstance(value, Tensor):
                lines.append(f"{name} {value!r}")
                continue
            key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            checksum = known.get(key) or _digest(value, pool)
            if value.data_ptr() in stay:  # tied ones are hashed once; offloaded ones do not stay
                known[key] = checksum
            lines.append(f"{name} {value.dtype} {tuple(value.shape)} {checksum}")
    text = "".join(f"{line}\n" for line in sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _digest(tensor: Tensor, pool: Executor) -> str:
    """Checksum of a tensor's bytes in the order of its elements."""
    flat = tensor.detach().reshape(-1)
    step = max(1, _PIECE // tensor.element_size())
    pieces = [flat[first : first + step] for first in range(0, len(flat), step)]
    return hashlib.sha256(b"".join(pool.map(_hash, pieces))).hexdigest()


def _hash(piece: Tensor) -> bytes:
    return hashlib.sha256(piece.cpu().contiguous().view(torch.uint8).numpy().data).digest()


def _values(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every weight under a name that wrapping does not change, and what else an adapter goes by."""
    names: dict[str, str | None] = {"": ""}
    for path, module in model.named_modules():
        name = _name(path, names)
        if name is None:
            continue
        if hasattr(module, "adapter_layer_names"):
            yield from _adapters(path, name, module, names)
        with on_hand(module):
            own: dict[str, Any] = {}
            module._save_to_state_dict(own, f"{path}." if path else "", False)
            for key, value in own.items():
                canonical = _name(key, names)
                if canonical is not None:
                    yield from _parts(canonical, value)


def _name(path: str, names: dict[str, str | None]) -> str | None:
    """The name of a module or weight without what a wrapping adds; None for what takes no part."""
    if path not in names:
        parent, _, own = path.rpartition(".")
        above = _name(parent, names)
        wrapper = own in ("base_layer", "original_module")
        wrapper |= path in ("base_model", "base_model.model")
        names[path] = above if above is None or wrapper else f"{above}.{own}".lstrip(".")
    return names[path]


def _adapters(
    path: str, name: str, layer: Any, names: dict[str, str | None]
) -> Iterator[tuple[str, Any]]:
    """What PEFT put into a layer; fills in the names of each adapter's parts, which go by order."""
    adapters = layer.active_adapters
    silent = layer.disable_adapters or getattr(layer, "merged", False)
    active = [] if silent else list(adapters if isinstance(adapters, list | tuple) else [adapters])
    for container in (*layer.adapter_layer_names, *getattr(layer, "other_param_names", ())):
        parts = getattr(layer, container, None)
        if parts is None or not hasattr(parts, "keys"):
            continue
        for adapter in parts.keys():  # noqa: SIM118, of torch too, whose dictionaries differ
            part = f"{name}.{container}.{active.index(adapter)}" if adapter in active else None
            names[f"{path}.{container}.{adapter}"] = part
            if part is not None and not isinstance(parts[adapter], Tensor | nn.Module):
                yield part, repr(parts[adapter])  # such as the scaling, the rank
    scaling = getattr(layer, "scaling", None)
    for order, adapter in enumerate(active):
        if isinstance(scaling, dict) and adapter in scaling:
            yield f"{name}.scaling.{order}", scaling[adapter]


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A weight as plain tensors: quantised ones are made of several."""
    plain = not isinstance(value, Tensor) or type(value) in (Tensor, nn.Parameter)
    if not plain and hasattr(value, "__tensor_flatten__"):
        inner, about = value.__tensor_flatten__()
        yield f"{name}.flat", repr(about)
        for part in inner:
            yield from _parts(f"{name}.{part}", getattr(value, part))
    else:
        yield name, value
