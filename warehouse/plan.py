"""Checks a scenario against a model before anything runs: roles, lengths, layers, vocabulary, room on the disk."""

import shutil
from dataclasses import dataclass
from typing import Any

from warehouse import models, sites
from warehouse.chat import Chat, Rendered
from warehouse.errors import AlabError
from warehouse.lake import STATE_SITES, Lake
from warehouse.recorder import FLAGS
from warehouse.scenario import Scenario

#: Bytes that a stored value takes on disk, measured on real activations, rounded up.
_BYTES_PER_VALUE = {"float16": 1.8, "bfloat16": 1.45, "float32": 3.6}


@dataclass
class Snapshot:
    """One message prefix to take the state after."""

    message_index: int
    role: str
    preview: str
    ids: list[int]
    is_generated: bool = False


@dataclass
class Plan:
    """A scenario checked against a model, before anything runs.

    Attributes:
        prompts: per prompt, its messages, its rendering and its snapshots.
        references: per example of a reference, in the scenario's order, (label, messages, token ids).
        layers: layers to capture.
        sites: sites to capture.
        warnings: rows of the table `warnings`, without the run's id.
    """

    prompts: list[tuple[list[dict], Rendered, list[Snapshot]]]
    references: list[tuple[str, list[dict], list[int]]]
    layers: list[int]
    sites: set[str]
    warnings: list[dict]


def make_plan(scenario: Scenario, loaded: models.Loaded, found: sites.ModelSites) -> Plan:
    """Check a scenario against a model; renders every conversation, runs nothing.

    Raises:
        AlabError: with exit code 2; names the key of the scenario that does not fit the model.
    """
    config = loaded.model.config.get_text_config()
    wanted = scenario.capture
    _at_most("generation.top_k", scenario.generation.top_k or 0, config.vocab_size)
    _at_most("capture.top_k_probs", wanted.top_k_probs, config.vocab_size)
    count = len(found.layers)
    layers = list(range(count)) if wanted.layers == "all" else sorted(set(wanted.layers))
    if layers[-1] >= count:
        raise AlabError(f"capture.layers: there is no layer {layers[-1]}; the model has 0 to {count - 1}", "", 2)
    chat = Chat(loaded.tokenizer)
    warnings = [{"code": code, "message": message} for code, message in loaded.notes]
    prompts = []
    for p, prompt in enumerate(scenario.prompt):
        messages = [message.model_dump() for message in prompt.messages]
        where = "prompt" if len(scenario.prompt) == 1 else f"prompt[{p}]"
        chat.check(messages, where)
        rendered = chat.render(messages)
        _check_length(rendered.ids, scenario.generation.max_new_tokens, loaded, where)
        prompts.append((messages, rendered, _snapshots(chat, messages, rendered, p, warnings)))
    references = []
    for i, reference in enumerate(scenario.reference_states):
        messages = [message.model_dump() for message in reference.messages]
        chat.check(messages, f"reference_states[{i}]")
        ids = chat.ids(chat.text(messages))
        _check_length(ids, 0, loaded, f"reference_states[{i}]")
        references.append((reference.label, messages, ids))
    if not wanted.hidden_states:
        for _, _, snapshots in prompts:
            snapshots.clear()
        warnings.append({"code": "no_states", "message": "capture.hidden_states is off: the run has no states"})
    names = {site for flag, names in FLAGS.items() if getattr(wanted, flag) for site in names}
    return Plan(prompts, references, layers, names, warnings)


def _snapshots(chat: Chat, messages: list[dict], rendered: Rendered, p: int, warnings: list[dict]) -> list[Snapshot]:
    snapshots = []
    for k, message in enumerate(messages):
        text = rendered.text if k + 1 == len(messages) else chat.prefix(messages[: k + 1])
        ids = chat.ids(text) if text else []
        if ids:
            snapshots.append(Snapshot(k, message["role"], preview(message["content"]), ids))
        else:
            reason = f"the chat template does not take messages 0 to {k} alone; they have no snapshot"
            warnings.append({"prompt_id": p, "code": "no_snapshot", "message": reason})
    return snapshots


def preview(text: str) -> str:
    """The first words of a message, at most 80 characters."""
    return " ".join(text[:200].split())[:80]


def _at_most(key: str, value: int, limit: int) -> None:
    if value > limit:
        raise AlabError(f"{key} is {value}; the model's vocabulary has {limit} tokens", exit_code=2)


def _check_length(ids: list[int], new: int, loaded: models.Loaded, where: str) -> None:
    limit = models.context_length(loaded.model)
    if not ids:
        raise AlabError(f"{where}.messages: the conversation has no tokens", "Give at least one message content.", 2)
    if limit is not None and len(ids) + new > limit:
        more = f" and {new} to generate" if new else ""
        raise AlabError(
            f"{where}: {len(ids)} tokens{more} are more than the model's context of {limit}",
            "Shorten the conversation" + (" or generation.max_new_tokens." if new else "."), 2,
        )  # fmt: skip


def estimate_bytes(scenario: Scenario, plan: Plan, found: sites.ModelSites, config: Any) -> int:
    """Bytes that a run will take on disk, about."""
    per_token = sum(
        port.width for n in plan.layers for site, port in found.layers[n].ports.items() if site in plan.sites
    )
    if scenario.capture.hidden_states:
        per_token += found.hidden_size
    if scenario.capture.logits:
        per_token += config.vocab_size
    total = 0
    for _, rendered, snapshots in plan.prompts:
        tokens = len(rendered.ids) + scenario.generation.max_new_tokens - 1
        total += tokens * per_token
        if scenario.capture.attention_weights:
            total += tokens * tokens // 2 * config.num_attention_heads * len(plan.layers)
        total += (len(snapshots) + 3) * len(plan.layers) * len(STATE_SITES) * found.hidden_size
    return int(total * _BYTES_PER_VALUE[scenario.capture.store_dtype])


def check_room(scenario: Scenario, plan: Plan, found: sites.ModelSites, loaded: models.Loaded, lake: Lake) -> None:
    """Compare what a run will take with what the disk has.

    Raises:
        AlabError: the run would not fit.
    """
    needed = estimate_bytes(scenario, plan, found, loaded.model.config.get_text_config())
    place = next(folder for folder in (lake.root, *lake.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise AlabError(
            f"{scenario.name} needs about {needed / 1e9:.1f} GB; {lake.warehouse} has {free / 1e9:.1f} GB free",
            "Keep fewer layers or tensors (capture.*), free some space, or go ahead with --force.",
        )
