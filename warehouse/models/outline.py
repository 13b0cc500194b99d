"""What a capture would take from a model, module by module: `alab layers`.

Without its weights, a stand-in is probed: the model's own code with random weights, its true
widths, the first layers (one of each kind that its config lists, two at least) and a small
vocabulary. Where a site lives depends on the code alone, so this is what a capture finds;
`--run-probe` loads the weights and asks the model itself.
"""

import copy
from typing import Any

import torch
from torch import nn

from warehouse import scenario
from warehouse.errors import AlabError, first_line
from warehouse.models import loading as models
from warehouse.models import sites
from warehouse.vocabulary import SITES

_VOCABULARY = 256


def describe(model_id: str, gguf_file: str | None = None, *, run_probe: bool = False) -> str:
    """The module tree of a model with the sites that a capture takes beside each module, as text.

    Args:
        model_id: hub id, local directory, or package:NAME.
        gguf_file: file to read, in the model's directory.
        run_probe: load the weights instead of probing a stand-in.

    Raises:
        AlabError: the model cannot be found, or its layers cannot.
    """
    if not model_id:
        raise AlabError(
            "the name of the model is empty", "Name a directory, a hub id, or package:NAME.", 2
        )
    spec = scenario.Model(id=model_id, gguf_file=gguf_file, dtype="float32", device="cpu")
    if run_probe:
        model = models.load(spec).model
        config, how = model.config.get_text_config(), "its weights"
    else:
        config = _config(spec)
        model, how = stand_in(config), "a stand-in with random weights"
        config = config.get_text_config()
    found = sites.discover(model, sharing=False)
    head = (
        f"{model_id}: {type(model).__name__}, {config.num_hidden_layers} layers × {config.hidden_size}, "
        f"{config.num_attention_heads} heads, vocabulary {config.vocab_size}; probed {how}"
    )
    return "\n\n".join([head, tree(model, found), *_missing(found)])


def stand_in(config: Any) -> nn.Module:
    """A model of a config with random weights, few layers and a small vocabulary; its widths are the true ones."""
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


def tree(model: nn.Module, found: sites.ModelSites) -> str:
    """The modules of a model; of its layers the first of each kind, with the sites taken from each."""
    taken: dict[str, list[str]] = {found.embedding: [f"embeddings ({found.embedding_width})"]}
    for layer in found.layers:
        for site in SITES:
            if port := layer.ports.get(site):
                more = ", added up" if port.more else ""
                for module in port.modules:
                    taken.setdefault(module, []).append(
                        f"{site} = {port.side}{port.part} ({port.width}{more})"
                    )
        if layer.attention:
            taken.setdefault(layer.attention, []).append("attention weights")
    head = model.get_output_embeddings()
    first_of = {}
    for layer in found.layers:
        first_of.setdefault(_kind(model.get_submodule(layer.module)), layer.module)
    lines = []
    for path, module in model.named_modules():
        inside = next(
            (x.module for x in found.layers if f"{path}.".startswith(f"{x.module}.")), None
        )
        if not path or (inside and inside not in first_of.values()):
            continue
        weight = getattr(module, "weight", None)
        shape = (
            " × ".join(map(str, weight.shape)) if weight is not None and module is not head else ""
        )
        notes = taken.get(path, []) + (["logits"] if module is head else [])
        name = "  " * path.count(".") + path.rpartition(".")[2]
        lines.append((name, f"{type(module).__name__} {shape}".strip(), ", ".join(notes)))
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)


def _kind(layer: nn.Module) -> tuple:
    """What tells layers of a different make apart: the classes of their modules."""
    return tuple((name, type(module).__name__) for name, module in layer.named_modules())


def _missing(found: sites.ModelSites) -> list[str]:
    """One line for each site that some layers lack, with the reason."""
    reasons = {}
    for layer in found.layers:
        for site, reason in layer.reasons.items():
            if site not in layer.ports:
                reasons.setdefault((site, reason), layer.module)
    lines = [
        f"no {site}: {reason} (first in {module})"
        for (site, reason), module in sorted(reasons.items())
    ]
    return ["\n".join(lines)] if lines else []


def _config(spec: scenario.Model) -> Any:
    from transformers import AutoConfig

    models.quiet_libraries()
    source, gguf = models.resolve(spec)
    try:
        return AutoConfig.from_pretrained(source, **({"gguf_file": gguf} if gguf else {}))
    except (OSError, ValueError, KeyError) as error:
        raise AlabError(
            f"cannot read the config of {spec.id}: {first_line(error)}",
            "Name a directory, a hub id such as owner/model, or package:NAME; a GGUF file with --gguf-file.",
        ) from error
