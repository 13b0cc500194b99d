"""What a capture would take from a model, module by module: `alab layers`.

Without its weights, a stand-in is probed: the model's own code with random weights, its true
widths, the first layers (one of each kind that its config lists, two at least) and a small
vocabulary. Where a site lives depends on the code alone, so this is what a capture finds;
`--run-probe` loads the weights and asks the model itself.
"""

import copy
import json
from typing import Any

import torch
from torch import nn

from warehouse import scenario
from warehouse.errors import AlabError, first_line
from warehouse.models import hub, limits, loading, sites
from warehouse.vocabulary import SITES

_VOCABULARY = 256


def outline(
    model_id: str, gguf_file: str | None = None, fmt: str = "text", *, run_probe: bool = False
) -> str:
    """The module tree of a model with the sites that a capture takes beside each module.

    Args:
        model_id: hub id, local directory, or package:NAME.
        gguf_file: file to read, in the model's directory.
        fmt: `text`, or `json` with the sizes beside the text: `layers`, `hidden_size`, `heads`,
            `vocabulary`, `context` (tokens; null where the config does not say), `embeddings`
            (width), `sites` (width of each, the widest of the layers that were probed).
        run_probe: load the weights instead of probing a stand-in.
    """
    if not model_id:
        raise AlabError(
            "the name of the model is empty", "Name a directory, a hub id, or package:NAME.", 2
        )
    spec = scenario.Model(id=model_id, gguf_file=gguf_file, dtype="float32", device="cpu")
    if run_probe:
        model = loading.load(spec).model
        config, how = model.config.get_text_config(), "its weights"
    else:
        config = _config(spec)
        model, how = stand_in(config), "a stand-in with random weights"
        config = config.get_text_config()
    model_sites = sites.discover(model, sharing=False)
    size = f"{config.num_hidden_layers} layers × {config.hidden_size}"
    more = f"{config.num_attention_heads} heads, vocabulary {config.vocab_size}; probed {how}"
    head = f"{model_id}: {type(model).__name__}, {size}, {more}"
    text = "\n\n".join([head, _modules(model, model_sites), *_missing(model_sites)])
    if fmt == "text":
        return text
    facts = {
        "model": model_id,
        "class": type(model).__name__,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocabulary": config.vocab_size,
        "context": limits.context_length(model),
        "embeddings": model_sites.embedding_width,
        "sites": _widths(model_sites),
        "text": text,
    }
    return json.dumps(facts, ensure_ascii=False)


def _widths(model_sites: sites.ModelSites) -> dict[str, int]:
    """The width of each site, of the layer where it is widest."""
    widths: dict[str, int] = {}
    for layer in model_sites.layers:
        for site, port in layer.ports.items():
            widths[site] = max(port.width, widths.get(site, 0))
    return widths


def stand_in(config: Any) -> nn.Module:
    """A model of a config with random weights, few layers and a small vocabulary; true widths."""
    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(config)
    text = small.get_text_config()
    kinds = getattr(text, "layer_types", None)
    count = max(2, 1 + max(kinds.index(kind) for kind in kinds)) if kinds else 2
    count = min(count, text.num_hidden_layers)
    if kinds:
        text.layer_types = kinds[:count]
    text.num_hidden_layers, text.vocab_size = count, min(_VOCABULARY, text.vocab_size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        small, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def _modules(model: Any, model_sites: sites.ModelSites) -> str:
    """The modules of a model, a line each; of layers with modules of the same classes the first."""
    paths = [layer.module for layer in model_sites.layers]
    first_of_kind: dict[tuple, str] = {}
    for path in paths:
        parts = model.get_submodule(path).named_modules()
        kind = tuple((name, type(module).__name__) for name, module in parts)
        first_of_kind.setdefault(kind, path)
    hidden = tuple(f"{path}." for path in paths if path not in first_of_kind.values())
    notes = _notes(model_sites)
    head = model.get_output_embeddings()
    lines = []
    for path, module in model.named_modules():
        if not path or f"{path}.".startswith(hidden):
            continue
        weight = None if module is head else getattr(module, "weight", None)
        shape = "" if weight is None else " × ".join(map(str, weight.shape))
        name = "  " * path.count(".") + path.rpartition(".")[2]
        taken = notes.get(path, []) + (["logits"] if module is head else [])
        lines.append((name, f"{type(module).__name__} {shape}".strip(), ", ".join(taken)))
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)


def _notes(model_sites: sites.ModelSites) -> dict[str, list[str]]:
    """What is taken from each module, by its path."""
    notes = {model_sites.embedding: [f"embeddings ({model_sites.embedding_width})"]}
    for layer in model_sites.layers:
        for site in filter(layer.ports.get, SITES):
            port = layer.ports[site]
            more = ", added up" if port.more else ""
            for module in port.modules:
                note = f"{site} = {port.side}{port.part} ({port.width}{more})"
                notes.setdefault(module, []).append(note)
        if layer.attention:
            notes.setdefault(layer.attention, []).append("attention weights")
    return notes


def _missing(model_sites: sites.ModelSites) -> list[str]:
    """One line for each site that some layers lack, with the reason."""
    first_of: dict[tuple[str, str], str] = {}
    for layer in model_sites.layers:
        for site, reason in layer.reasons.items():
            if site not in layer.ports:
                first_of.setdefault((site, reason), layer.module)
    rows = sorted(first_of.items())
    lines = (f"no {site}: {reason} (first in {module})" for (site, reason), module in rows)
    return ["\n".join(lines)] if first_of else []


def _config(spec: scenario.Model) -> Any:
    from transformers import AutoConfig

    loading.quiet_libraries()
    source, gguf = loading.resolve(spec)
    try:
        with hub.reached(source):
            return AutoConfig.from_pretrained(source, **({"gguf_file": gguf} if gguf else {}))
    except (OSError, ValueError, KeyError) as error:
        raise AlabError(
            f"cannot read the config of {spec.id}: {first_line(error)}",
            "Name a directory, a hub id such as owner/model, or package:NAME; a GGUF file with "
            "--gguf-file.",
        ) from error
