"""Which models and passes can be recorded: said before a pass runs, where its numbers could not be right."""

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError

#: Models that are being recorded: probing one would put passes into the recording that the caller
#: never made.
RECORDED: "WeakSet[nn.Module]" = WeakSet()

#: What is added to the scores of a key that a token does not see: this, or less.
_HIDDEN = -1e4


def check_free(model: nn.Module) -> None:
    """Refuse a model that is being recorded.

    Raises:
        AlabError: it is; what a probe reads would become a part of that recording.
    """
    if model in RECORDED:
        raise AlabError(
            f"{type(model).__name__} is being recorded already",
            "End the `recording` block first, or use another copy of the model.",
        )


def check_plain(model: nn.Module) -> None:
    """Refuse a compiled model: its code was made before our hooks, and runs without them.

    Raises:
        AlabError: it, or a module of it, was compiled by `torch.compile`.
    """
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise AlabError(
                f"{path or type(module).__name__} is compiled by torch.compile, and compiled code runs without hooks",
                "Give the model as it was before: of a model that torch.compile returned, its `_orig_mod`.",
            )


def check_mode(model: nn.Module) -> None:
    """Refuse a model in training mode, the whole of it or a dropout in it.

    Raises:
        AlabError: it is; the message says which part.
    """
    dropouts = (torch.nn.modules.dropout._DropoutNd,)
    for path, module in model.named_modules():
        if module.training and (not path or (isinstance(module, dropouts) and module.p > 0)):
            what = f"{path} of the model" if path else "the model"
            reason = f"{what} is in training mode: dropout makes its tensors random"
            raise AlabError(reason, "Call model.eval() first.")


def check_mask(mask: Any, tokens: int, past: int) -> None:
    """Refuse a mask that hides tokens, or shows a token later ones: what is stored are weights over earlier keys.

    Args:
        mask: `attention_mask` of a pass; a (batch, …, queries, keys) one adds to scores or says
            what is seen.
        tokens: tokens that the pass reads.
        past: tokens that its cache holds.

    Raises:
        AlabError: it does.
    """
    if not isinstance(mask, Tensor):
        return
    if mask.ndim == 2:
        if not bool(mask.all()):
            raise AlabError(
                "a pass masks tokens; padded sequences cannot be recorded",
                "Give the sequence unpadded.",
            )
        return
    seen = mask if mask.dtype == torch.bool else mask > _HIDDEN / 2
    causal = torch.ones(seen.shape[-2:], dtype=torch.bool, device=mask.device).tril(past)
    if seen.shape[-2] != tokens or bool((seen & ~causal).any()) or not bool(seen.any(-1).all()):
        raise AlabError(
            "a pass has an attention mask of its own in which a token sees later ones, or none",
            "Leave out attention_mask, or give one that shows each token itself and earlier ones.",
        )


def weights_mark(model: Any) -> tuple:
    """What tells, without reading them, that a model's weights or active adapters are others than before."""
    versions = [
        (w.data_ptr(), None if w.is_inference() else w._version) for w in model.parameters()
    ]
    switches = [
        (
            str(getattr(m, "active_adapters", None)),
            getattr(m, "disable_adapters", None),
            getattr(m, "merged", None),
        )
        for m in model.modules()
        if hasattr(m, "base_layer")
    ]
    return tuple(versions), tuple(switches)


def places_of_logits(kwargs: dict, count: int, tokens: int) -> list[int]:
    """Which tokens of a pass `count` rows of logits are of, in rising order.

    Raises:
        AlabError: that cannot be told.
    """
    kept = kwargs.get("logits_to_keep", 0)
    if isinstance(kept, Tensor) and kept.ndim == 1 and len(kept) == count:
        places = [int(place) % tokens for place in kept]
        if places == sorted(set(places)):
            return places
    if not isinstance(kept, Tensor) and count in (tokens, kept):
        return list(range(tokens - count, tokens))
    raise AlabError(
        f"a pass over {tokens} tokens gave {count} rows of logits, and which tokens they are of is unknown",
        "Leave out logits_to_keep, or give a number or rising places.",
    )
