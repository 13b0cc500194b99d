"""Parameters that accelerate keeps elsewhere, on the disk or another device, while they are not used."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def on_hand(module: nn.Module) -> AbstractContextManager:
    """A context in which a module's own parameters are on the CPU, if accelerate keeps them elsewhere."""
    if getattr(module, "_hf_hook", None) is None:
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module, torch.device("cpu"))


def values(module: nn.Module, name: str) -> Tensor | None:
    """A parameter of a module's own in float32 on the CPU, wherever it lies; None where the module has none.

    Raises:
        RuntimeError: it is nowhere: a parameter without values.
    """
    with on_hand(module):
        found = getattr(module, name, None)
        return None if found is None else found.detach().to("cpu", torch.float32)


def device_of(model: Any) -> torch.device:
    """Where a model takes its tokens; also of a model whose parameters lie elsewhere."""
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return model.device
