"""Finds where each site lives in a model, by looking at numbers instead of names.

A probe pass over a few tokens records what every module takes and gives. The decoder's layers are
the modules through which the head's input comes (`stack`); the outputs that add up to what a layer
adds to the residual stream are its contributions, told apart by whether they mix positions
(`sublayers`); q, k and v are the columns that the key-value cache holds (`projections`). What
cannot be shown to be right is left out, with a reason.
"""

from typing import Any

from warehouse.models import sharing as together
from warehouse.models.branches import Branches
from warehouse.models.ports import LayerSites, ModelSites
from warehouse.models.probe import Trace, sample, trace, unwrapped
from warehouse.models.projections import find_projections
from warehouse.models.reader import Reader
from warehouse.models.refusals import check_free, check_plain
from warehouse.models.stack import Stack, check_causal, check_kind, find_stack, refused
from warehouse.models.sublayers import find_contributions, find_mlp
from warehouse.vocabulary import SITES


def discover(model: Any, *, sharing: bool = True, batches: bool = False) -> ModelSites:
    """Find every site of a model that runs on its device.

    Costs six passes over a few tokens, and another where projections are fused.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        sharing: whether to find out what its sequences can share, for one to three passes more.
        batches: whether to find out if it reads batches rightly, for four passes more.

    Raises:
        AlabError: the model is not one that can be captured; the message says why.
    """
    check_kind(model)
    check_plain(model)
    check_free(unwrapped(model))
    if not getattr(model.config.get_text_config(), "num_attention_heads", 0):
        raise refused(model, "it has no attention")
    probe = trace(model, sample(model))
    stack = find_stack(model, probe)
    check_causal(model, probe, stack)
    layers = _layers(model, probe, stack)
    last, tokens = stack.layers[-1], probe.tokens[0].tolist()
    reader, plain = Reader(model, trees=True), (tokens, last.output)
    decodes = together.decodes(reader, tokens, stack.logits)
    trees = rewinds = False
    if sharing:
        trees, rewinds = together.trees_and_rewinds(reader, last.module, *plain)
    return ModelSites(
        layers=layers,
        embedding=stack.embedding.path,
        embedding_width=stack.embedding.output.shape[1],
        hidden_size=last.output.shape[1],
        vocabulary=stack.logits.shape[1],
        reader=stack.reader.path if stack.reader else None,
        trees=trees,
        rewinds=rewinds,
        decodes=decodes,
        batches=batches and together.batches(reader, last.module, *plain),
        branches=batches and together.batches(reader, last.module, *plain, Branches),
    )


def _layers(model: Any, probe: Trace, stack: Stack) -> list[LayerSites]:
    """The sites of each layer: the residual stream, then the MLP, then the attention's."""
    layers = [LayerSites(call.path) for call in stack.layers]
    inside = [[call for call in probe.calls if call.inside(layer)] for layer in stack.layers]
    find_contributions(model, probe, stack, layers)
    for site, calls in zip(layers, inside, strict=True):
        find_mlp(site, calls)
        site.attention = next((call.path for call in calls if call.weights), None)
        if site.attention is None:
            site.reasons["attention"] = "no module of the layer returned attention weights"
    find_projections(model, model.config.get_text_config(), layers, inside)
    for site in layers:
        for name in SITES:
            if name not in site.ports:
                site.reasons.setdefault(name, "the model has no such tensor")
    return layers
