"""Which models can be recorded: others are refused before a pass gives numbers that are wrong."""

from weakref import WeakSet

import torch
from torch import nn

from warehouse.errors import AlabError

#: Models that are being recorded: probing one would put passes into the recording that the caller
#: never made.
RECORDED: "WeakSet[nn.Module]" = WeakSet()


def check_free(model: nn.Module) -> None:
    """Refuse a model that is being recorded: what a probe reads would become a part of that."""
    if model in RECORDED:
        raise AlabError(
            f"{type(model).__name__} is being recorded already",
            "End the `recording` block first, or use another copy of the model.",
        )


def check_plain(model: nn.Module) -> None:
    """Refuse a model that is compiled, or a part of which is: such code runs without our hooks."""
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise AlabError(
                f"{path or type(module).__name__} is compiled by torch.compile, "
                "and compiled code runs without hooks",
                "Give the model as it was before: of a model that torch.compile returned, its "
                "`_orig_mod`.",
            )


def check_mode(model: nn.Module) -> None:
    """Refuse a model in training mode, the whole of it or a dropout in it."""
    dropouts = torch.nn.modules.dropout._DropoutNd
    for path, module in model.named_modules():
        if module.training and (not path or (isinstance(module, dropouts) and module.p > 0)):
            what = f"{path} of the model" if path else "the model"
            reason = f"{what} is in training mode: dropout makes its tensors random"
            raise AlabError(reason, "Call model.eval() first.")
