"""Parameters that accelerate keeps on the disk or another device until they are used."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def on_hand(module: nn.Module) -> AbstractContextManager:
    """A context in which a module's own parameters are on the CPU, wherever they lie."""
    if getattr(module, "_hf_hook", None) is None:
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module, torch.device("cpu"))


def values(module: nn.Module, name: str) -> Tensor | None:
    """A module's own parameter in float32 on the CPU, wherever it lies; None where it has none.

    Raises:
        RuntimeError: it is nowhere: a parameter without values.
    """
    with on_hand(module):
        value = getattr(module, name, None)
        return None if value is None else value.detach().to("cpu", torch.float32)


def device_of(model: Any) -> torch.device:
    """Where a model takes its tokens; also of a model whose parameters lie elsewhere."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return model.device
