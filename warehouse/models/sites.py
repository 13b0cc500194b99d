"""Finds where each site lives in a model, by looking at numbers instead of names.

A probe pass over a few tokens records what every module takes and gives. The decoder's layers are
the modules through which the head's input comes (`stack`); the outputs that add up to what a layer
adds to the residual stream are its contributions, told apart by whether they mix positions
(`sublayers`); q, k and v are the columns that the key-value cache holds (`projections`). What
cannot be shown to be right is left out, with a reason.
"""

from typing import Any

from warehouse.models import sharing as together
from warehouse.models.ports import LayerSites, ModelSites, Port
from warehouse.models.probe import sample, trace, unwrapped
from warehouse.models.projections import find_projections
from warehouse.models.reader import Reader
from warehouse.models.refusals import check_free, check_plain
from warehouse.models.stack import check_causal, check_kind, decoder_layers, find_stack, refused
from warehouse.models.sublayers import find_contributions, find_mlp
from warehouse.vocabulary import SITES

__all__ = ["LayerSites", "ModelSites", "Port", "decoder_layers", "discover"]


def discover(model: Any, *, sharing: bool = True, batches: bool = False) -> ModelSites:
    """Find every site of a model that runs on its device.

    Costs six passes over a few tokens, and another where projections are fused.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        sharing: whether to find out what its sequences can share, for one to three passes more.
        batches: whether to find out if it reads batches rightly, for two passes more.

    Raises:
        AlabError: the model is not one that can be captured; the message says why.
    """
    check_kind(model)
    check_plain(model)
    check_free(unwrapped(model))
    config = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", 0):
        raise refused(model, "it has no attention")
    seen = trace(model, sample(model))
    stack = find_stack(model, seen)
    check_causal(model, seen, stack)
    layers = [LayerSites(call.path) for call in stack.layers]
    inside = [[call for call in seen.calls if call.inside(end)] for end in stack.layers]
    find_contributions(model, seen, stack, layers)
    for site, calls in zip(layers, inside, strict=True):
        site.attention = next((call.path for call in calls if call.weights), None)
        if site.attention is None:
            site.reasons["attention"] = "no module of the layer returned attention weights"
        find_mlp(site, calls)
    find_projections(model, config, layers, inside)
    for site in layers:
        for name in SITES:
            if name not in site.ports:
                site.reasons.setdefault(name, "the model has no such tensor")
    last = stack.layers[-1]
    tokens, reader = seen.tokens[0].tolist(), Reader(model, trees=True)
    plain = tokens, last.output
    decodes = together.decodes(reader, tokens, stack.logits)
    shared = together.trees_and_rewinds(reader, last.module, *plain) if sharing else (False, False)
    return ModelSites(
        layers,
        stack.embedding.path,
        stack.embedding.output.shape[1],
        last.output.shape[1],
        stack.logits.shape[1],
        stack.reader and stack.reader.path,
        *shared,
        decodes,
        batches and together.batches(reader, last.module, *plain),
    )
