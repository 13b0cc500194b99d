"""Checks a scenario against a model before anything runs: roles, lengths, layers, vocabulary, room on the disk."""

from dataclasses import dataclass
from typing import Any

from warehouse.capture import state_tokens
from warehouse.errors import AlabError
from warehouse.lake import store
from warehouse.lake.lake import Lake
from warehouse.models import limits, sampler, sites, spans
from warehouse.models import loading as models
from warehouse.models import weights as loading
from warehouse.models.chat import Chat, Rendered
from warehouse.scenario import Prompt, Scenario
from warehouse.vocabulary import SITES, STATE_SITES, TABLE

#: Bytes that a stored value takes on disk, measured on real activations, rounded up.
_BYTES_PER_VALUE = {"float16": 1.8, "bfloat16": 1.45, "float32": 3.6}


@dataclass
class Snapshot:
    """One message prefix to take the state after."""

    message_index: int
    role: str
    preview: str
    ids: list[int]
    token: dict  # row of `state_tokens`
    is_generated: bool = False


@dataclass
class Plan:
    """A scenario checked against a model, before anything runs.

    Attributes:
        prompts: per prompt, its messages, its rendering and its snapshots.
        references: per example of a reference, in the scenario's order, (label, messages, how they
            are read).
        layers: layers to capture.
        sites: sites to keep of every token.
        states: whether to keep last-token states.
        warnings: rows of the table `warnings`, without the run's id.
    """

    prompts: list[tuple[list[dict], Rendered, list[Snapshot]]]
    references: list[tuple[str, list[dict], Rendered]]
    layers: list[int]
    sites: set[str]
    states: bool
    warnings: list[dict]

    @property
    def read(self) -> set[str]:
        """Sites to take from the model: those that are kept, and those that states need."""
        return self.sites | set(STATE_SITES) if self.states else self.sites


def make_plan(scenario: Scenario, loaded: models.Loaded, found: sites.ModelSites) -> Plan:
    """Check a scenario against a model; renders every conversation, runs nothing.

    Raises:
        AlabError: with exit code 2; names the key of the scenario that does not fit the model.
    """
    wanted = scenario.capture
    _at_most("generation.top_k", scenario.generation.top_k or 0, found.vocabulary)
    _at_most("capture.top_k_probs", wanted.top_k_probs, found.vocabulary)
    layers = _layers(wanted.layers, len(found.layers))
    warnings = [
        {"code": code, "message": message}
        for code, message in [*loaded.notes, *sampler.notes(loaded.model)]
    ]
    if not found.decodes:
        said = "a decode step does not give what reading the same tokens at once gives: the model's cache is at fault"
        warnings.append({"code": "cache", "message": said})
    prompts = []
    for p, prompt in enumerate(scenario.prompt):
        where = "prompt" if len(scenario.prompt) == 1 else f"prompt[{p}]"
        chat = chat_of(loaded.tokenizer, prompt)
        rendered = chat.conversation(prompt.turns, where)
        _check_length(rendered.ids, scenario.generation.max_new_tokens, loaded, where)
        told = {"prompt_id": p}
        warnings += [told | warning for warning in _rendering_warnings(rendered, "message")]
        prompts.append((prompt.turns, rendered, _snapshots(chat, rendered, p, warnings)))
    if scenario.prompt:
        eos = limits.eos_ids(loaded.model, loaded.tokenizer)
        sampler.processors(
            loaded.model, 1, scenario.generation.max_new_tokens, eos
        )  # refused here if at all
    references = []
    chat = _references_chat(scenario, loaded)
    for i, reference in enumerate(scenario.reference_states):
        messages = [message.model_dump() for message in reference.messages]
        rendered = chat.conversation(messages, f"reference_states[{i}]")
        _check_length(rendered.ids, 0, loaded, f"reference_states[{i}]")
        told = _rendering_warnings(rendered, f"reference_states[{i}] ({reference.label}): message")
        warnings += [
            warning for warning in told if warning["code"] != "content_parts"
        ]  # the prompt's says it
        references.append((reference.label, messages, rendered))
    if not wanted.states:
        for _, _, snapshots in prompts:
            snapshots.clear()
        warnings.append(
            {"code": "no_states", "message": "capture.states is off: the run has no states"}
        )
    names = {site.name for site in TABLE if site.name in SITES and getattr(wanted, site.flag)}
    return Plan(prompts, references, layers, names, wanted.states, warnings)


def _layers(wanted: list[int] | str, count: int) -> list[int]:
    """The layers that `capture.layers` means, ascending; negative ones count from the end.

    Raises:
        AlabError: the model has no such layer, or one is named twice.
    """
    if wanted == "all":
        return list(range(count))
    asked: dict[int, int] = {}
    for layer in wanted:
        if not -count <= layer < count:
            there = f"the model has 0 to {count - 1}, or from the end -1 to -{count}"
            raise AlabError(f"capture.layers: there is no layer {layer}; {there}", "", 2)
        if layer % count in asked:
            which = f"as {asked[layer % count]} and as {layer}"
            raise AlabError(
                f"capture.layers names layer {layer % count} twice, {which}", "Name it once.", 2
            )
        asked[layer % count] = layer
    return sorted(asked)


def refusal(scenario: Scenario, loaded: models.Loaded) -> str | None:
    """Why the model's chat template does not take a scenario's conversations; None where it does."""
    try:
        for prompt in scenario.prompt:
            chat_of(loaded.tokenizer, prompt).conversation(prompt.turns, "prompt")
    except AlabError as error:
        return error.message
    return None


def chat_of(tokenizer: Any, prompt: Prompt) -> Chat:
    """How a prompt is written: by the chat template with the prompt's options, or as it is."""
    return Chat(
        tokenizer,
        prompt.template,
        generation_prompt=prompt.add_generation_prompt,
        plain=prompt.text is not None,
    )


def _references_chat(scenario: Scenario, loaded: models.Loaded) -> Chat:
    """How references are written: as the first prompt that has messages, with whose states theirs are compared."""
    first = next((prompt for prompt in scenario.prompt if prompt.messages), None)
    return chat_of(loaded.tokenizer, first) if first else Chat(loaded.tokenizer)


def _rendering_warnings(rendered: Rendered, what: str) -> list[dict]:
    """What the reader should know of a rendering: words that it lacks or has otherwise, and content parts."""

    def warning(code: str, indices: list[int], sentence: str) -> list[dict]:
        named = ", ".join(f"{k} ({rendered.messages[k]['role']})" for k in indices)
        return [{"code": code, "message": f"{what} {named}: {sentence}"}] if indices else []

    return [
        *warning(
            "not_rendered", rendered.absent, "the chat template leaves out the words; no snapshot"
        ),
        *warning(
            "rewritten",
            rendered.partial,
            "the chat template keeps a part of the words, or writes others",
        ),
        *warning(
            "content_parts",
            rendered.parts,
            "given to the chat template as content parts: it drops texts",
        ),
    ]


def _snapshots(chat: Chat, rendered: Rendered, p: int, warnings: list[dict]) -> list[Snapshot]:
    """The states after each message that is rendered, where the rendering up to it has what the whole one has."""
    snapshots = []
    for k, message in enumerate(rendered.messages):
        if k in rendered.absent:
            continue
        prefix = (
            rendered if k + 1 == len(rendered.messages) else chat.prefix(rendered.messages[: k + 1])
        )
        if prefix is None:
            reason = (
                f"the chat template does not take messages 0 to {k} alone; they have no snapshot"
            )
        elif lost := sorted(set(prefix.absent) - set(rendered.absent)):
            reason = f"rendered alone, messages 0 to {k} lack the words of message {lost[0]}; they have no snapshot"
        elif not prefix.ids:
            reason = f"messages 0 to {k} have no tokens; they have no snapshot"
        else:
            row = state_tokens.row_of((p, "snapshot", k, None), prefix)
            snapshots.append(
                Snapshot(k, message["role"], preview(spans.words(message)), prefix.ids, row)
            )
            continue
        warnings.append({"prompt_id": p, "code": "no_snapshot", "message": reason})
    return snapshots


def preview(text: str) -> str:
    """The first words of a message, at most 80 characters."""
    return " ".join(text[:200].split())[:80]


def _at_most(key: str, value: int, limit: int) -> None:
    if value > limit:
        raise AlabError(f"{key} is {value}; the model's vocabulary has {limit} tokens", exit_code=2)


def _check_length(ids: list[int], new: int, loaded: models.Loaded, where: str) -> None:
    limit = limits.context_length(loaded.model)
    loading.check_ids(ids, loaded.model, where)
    if not ids:
        raise AlabError(
            f"{where}.messages: the conversation has no tokens",
            "Give at least one message content.",
            2,
        )
    if limit is not None and len(ids) + new > limit:
        more = f" and {new} to generate" if new else ""
        raise AlabError(
            f"{where}: {len(ids)} tokens{more} are more than the model's context of {limit}",
            "Shorten the conversation" + (" or generation.max_new_tokens." if new else "."),
            2,
        )


def estimate_bytes(scenario: Scenario, plan: Plan, found: sites.ModelSites, config: Any) -> int:
    """Bytes that a run will take on disk, about."""
    per_token = sum(
        port.width
        for n in plan.layers
        for site, port in found.layers[n].ports.items()
        if site in plan.sites
    )
    if scenario.capture.hidden_states:
        per_token += found.embedding_width
    if scenario.capture.logits:
        per_token += found.vocabulary
    total = 0
    for _, rendered, snapshots in plan.prompts:
        tokens = len(rendered.ids) + scenario.generation.max_new_tokens - 1
        total += tokens * per_token
        if scenario.capture.attention_weights:
            total += tokens * tokens // 2 * config.num_attention_heads * len(plan.layers)
        if plan.states:
            total += (len(snapshots) + 3) * len(plan.layers) * len(STATE_SITES) * found.hidden_size
    return int(total * _BYTES_PER_VALUE[scenario.capture.store_dtype])


def check_room(
    scenario: Scenario, plan: Plan, found: sites.ModelSites, loaded: models.Loaded, lake: Lake
) -> None:
    """Compare what a run will take with what the disk has.

    Raises:
        AlabError: the run would not fit.
    """
    needed = estimate_bytes(scenario, plan, found, loaded.model.config.get_text_config())
    free = store.free(lake.root)
    if needed > free:
        raise AlabError(
            f"{scenario.name} needs about {needed / 1e9:.1f} GB; {lake.warehouse} has {free / 1e9:.1f} GB free",
            "Keep fewer layers or tensors (capture.*), free some space, or go ahead with --force.",
        )
