"""What can be recorded of a caller's own passes: their masks, changing weights, some logits."""

from typing import Any

import torch
from torch import Tensor

from warehouse.errors import AlabError

#: What is added to the scores of a key that a token does not see: this, or less.
_HIDDEN = -1e4


def check_mask(mask: Any, tokens: int, past: int) -> None:
    """Refuse a mask that hides tokens, or shows a token later ones: stored are earlier keys only.

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
    sees = mask if mask.dtype == torch.bool else mask > _HIDDEN / 2
    causal = torch.ones(sees.shape[-2:], dtype=torch.bool, device=mask.device).tril(past)
    if sees.shape[-2] != tokens or bool((sees & ~causal).any()) or not bool(sees.any(-1).all()):
        raise AlabError(
            "a pass has an attention mask of its own in which a token sees later ones, or none",
            "Leave out attention_mask, or give one that shows each token itself and earlier ones.",
        )


def weights_mark(model: Any) -> tuple:
    """What changes, without reading them, when a model's weights or active adapters do."""
    versions = [
        (w.data_ptr(), None if w.is_inference() else w._version) for w in model.parameters()
    ]
    adapters = [module for module in model.modules() if hasattr(module, "base_layer")]
    switches = ("active_adapters", "disable_adapters", "merged")
    states = [tuple(str(getattr(m, name, None)) for name in switches) for m in adapters]
    return tuple(versions), tuple(states)


def places_of_logits(kwargs: dict, count: int, tokens: int) -> list[int]:
    """Which tokens of a pass `count` rows of logits are of, in rising order.

    Raises:
        AlabError: that cannot be told.
    """
    request = kwargs.get("logits_to_keep", 0)
    if isinstance(request, Tensor) and request.ndim == 1 and len(request) == count:
        places = [int(place) % tokens for place in request]
        if places == sorted(set(places)):
            return places
    if not isinstance(request, Tensor) and count in (tokens, request):
        return list(range(tokens - count, tokens))
    raise AlabError(
        f"a pass over {tokens} tokens gave {count} rows of logits, "
        "and which tokens they are of is unknown",
        "Leave out logits_to_keep, or give a number or rising places.",
    )
