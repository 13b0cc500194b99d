"""What a model can take: lengths, rotary frequencies, its cache, the ids that end a reply."""

import inspect
import math
import re
from typing import Any

#: Names by which configs say the longest sequence.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
#: Names by which they say up to where every layer attends alike.
_REACHES = re.compile(r"(window|window_size|chunk_size|index_topk|floor_scale)$")
#: Names by which models take and give their key-value cache; the first from transformers 5.24 on.
_CACHES = ("cache", "past_key_values")


def context_length(model: Any) -> int | None:
    """Longest sequence the model takes; None where its config does not say."""
    lengths = (getattr(model.config.get_text_config(), name, None) for name in _LENGTHS)
    return next((n for n in lengths if isinstance(n, int) and n > 0), None)


def reach(model: Any) -> float:
    """Tokens up to which every layer attends to all of them alike; infinite without such a limit.

    Beyond, the config says, there are windows, chunks, a choice of keys (DeepSeek's `index_topk`)
    or other scales (Llama 4's `floor_scale`), which some models count in places of the pass or of
    the cache instead of positions.
    """
    values = model.config.get_text_config().to_dict().items()
    limits = (v for name, v in values if _REACHES.search(name) and isinstance(v, int) and v > 0)
    return min(limits, default=math.inf)


def tree_tokens(model: Any) -> float:
    """Tokens of a tree, with what of a cache it sees: all are attended to alike, and counted."""
    return min(reach(model) - 1, context_length(model) or math.inf)


def rotary_regime(model: Any, length: int) -> tuple[int, ...]:
    """Which rotary frequencies a sequence of so many tokens has: equal values, equal frequencies.

    Some models turn keys otherwise in long sequences, so that what a long one left in a cache is
    wrong for a short one: `longrope` has a second set past the length of the pretraining, `dynamic`
    scaling one for each beyond it.
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


def cache_name(model: Any) -> str:
    """The argument by which a model takes its key-value cache."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in _CACHES if name in names), _CACHES[1])


def cache_in(values: Any) -> Any:
    """The key-value cache in a model's named arguments or in what it returned; None without one."""
    caches = (values.get(name) for name in _CACHES)
    return next((cache for cache in caches if cache is not None), None)


def eos_ids(model: Any, tokenizer: Any) -> set[int]:
    """All end-of-sequence ids: the generation config's, the model config's and the tokenizer's."""
    owners = getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer
    values = (getattr(owner, "eos_token_id", None) for owner in owners)
    lists = (v if isinstance(v, list | tuple) else [v] for v in values if v is not None)
    return {token for ids in lists for token in ids}
