"""Checks a scenario against a model before anything runs: roles, lengths, layers, room on disk."""

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from warehouse.capture import state_tokens
from warehouse.capture.amounts import Amounts
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.models import limits, sampler, spans, weights
from warehouse.models.chat import Chat, Rendered
from warehouse.models.loading import Loaded
from warehouse.models.ports import ModelSites
from warehouse.scenario import Prompt, Scenario
from warehouse.vocabulary import CONTRIBUTIONS, SITES, STATE_SITES

if TYPE_CHECKING:
    from warehouse.capture.dataset_prompts import DatasetPrompts

#: Prompts whose renderings are kept from the check until they are due; of more, each is rendered
#: again, so that memory does not grow with prompts.
RENDERINGS = 64


@dataclass
class Snapshot:
    """One message prefix to take the state after."""

    message_index: int
    role: str
    preview: str
    ids: list[int]
    token: dict  # row of `state_tokens`
    is_generated: bool = False


class PlannedPrompt(NamedTuple):
    """A prompt as it will be read: its messages, its rendering, and the snapshots to take."""

    messages: list[dict]
    rendered: Rendered
    snapshots: list[Snapshot]


class Prompts:
    """The prompts of a scenario: all are rendered to be checked, and many again when they are due.

    Attributes:
        tokens: that their passes will read.
        pairs: of a token and an earlier one, which attention weighs.
        snapshots: that will be taken.
        dataset_hash: None; of a dataset its digest.

    Args:
        scenario: the request.
        loaded: the model.
        warnings: gets rows of the table `warnings` about them.

    Raises:
        AlabError: with exit code 2; one does not fit the model.
    """

    dataset_hash: str | None = None

    def __init__(self, scenario: Scenario, loaded: Loaded, warnings: list[dict]):
        self._scenario, self._loaded = scenario, loaded
        self._renderings: list[PlannedPrompt] = []
        self.tokens = self.pairs = self.snapshots = 0
        for prompt_id in range(len(self)):
            prompt, remarks = self._render(prompt_id)
            warnings += remarks
            tokens = len(prompt.rendered.ids) + scenario.generation.max_new_tokens - 1
            self.tokens += tokens
            self.pairs += tokens * tokens // 2
            self.snapshots += len(prompt.snapshots)
            if len(self) <= RENDERINGS:
                self._renderings.append(prompt)

    def __len__(self) -> int:
        return len(self._scenario.prompt)

    @property
    def readable(self) -> range:
        """Those that are read: all."""
        return range(len(self))

    def __getitem__(self, prompt_id: int) -> PlannedPrompt:
        return self._renderings[prompt_id] if self._renderings else self._render(prompt_id)[0]

    def _render(self, prompt_id: int) -> tuple[PlannedPrompt, list[dict]]:
        """A prompt, checked, and what the reader should know of it."""
        prompt, scenario = self._scenario.prompt[prompt_id], self._scenario
        where = "prompt" if len(self) == 1 else f"prompt[{prompt_id}]"
        chat = chat_of(self._loaded.tokenizer, prompt)
        rendered = chat.conversation(prompt.turns, where)
        _check_length(rendered.ids, scenario.generation.max_new_tokens, self._loaded, where)
        at = {"prompt_id": prompt_id}
        warnings = [at | warning for warning in _rendering_warnings(rendered, "message")]
        snapshots = _snapshots(chat, rendered, prompt_id, warnings)
        snapshots = snapshots if scenario.capture.states else []
        return PlannedPrompt(prompt.turns, rendered, snapshots), warnings


@dataclass
class Plan:
    """A scenario checked against a model, before anything runs.

    Attributes:
        scenario: the request.
        loaded: the model.
        sites: where its sites are.
        prompts: the prompts as they will be read.
        references: per example of a reference, in the scenario's order, (label, messages, how they
            are read).
        layers: layers to capture.
        stored: names of the sites to keep of every token.
        warnings: rows of the table `warnings`, without the run's id.
    """

    scenario: Scenario
    loaded: Loaded
    sites: ModelSites
    prompts: "Prompts | DatasetPrompts"
    references: list[tuple[str, list[dict], Rendered]]
    layers: list[int]
    stored: set[str]
    warnings: list[dict]

    @property
    def states(self) -> bool:
        """Whether to keep last-token states."""
        return self.scenario.capture.states and self.scenario.dataset is None

    @property
    def recorded(self) -> set[str]:
        """Sites to take from the model: those that are stored, and what they are proved by."""
        proved = bool(self.states or self.stored & set(CONTRIBUTIONS))  # as the parts of a sum
        read = {"hidden_in"} if self.scenario.dataset is not None else set()
        return self.stored | read | (set(STATE_SITES) if proved else set())

    @property
    def hooked(self) -> list[int]:
        """Layers to take them from: of a dataset the first too, for the mean of what it reads."""
        return self.layers if self.scenario.dataset is None else sorted({0, *self.layers})

    @property
    def widths(self) -> dict[int | None, dict[str, int]]:
        """Width of each stored site, per layer; None for embeddings and logits."""
        options = self.scenario.capture
        widths: dict[int | None, dict[str, int]] = {
            n: {
                name: port.width
                for name, port in self.sites.layers[n].ports.items()
                if name in self.stored
            }
            for n in self.layers
        }
        outputs = {"embeddings": self.sites.embedding_width, "logits": self.sites.vocabulary}
        widths[None] = {name: width for name, width in outputs.items() if options.keeps(name)}
        return widths


def make_plan(scenario: Scenario, loaded: Loaded, sites: ModelSites) -> Plan:
    """Check a scenario against a model; renders every conversation, runs nothing.

    Raises:
        AlabError: with exit code 2; names the key of the scenario that does not fit the model.
    """
    options, generation = scenario.capture, scenario.generation
    _at_most("generation.top_k", generation.top_k or 0, sites.vocabulary)
    _at_most("capture.top_k_probs", options.top_k_probs, sites.vocabulary)
    layers = _layers(options.layers, len(sites.layers))
    warnings = _model_warnings(loaded, sites)
    prompts = Prompts(scenario, loaded, warnings)
    if scenario.prompt:  # what no sampler can do is refused here
        eos = limits.eos_ids(loaded.model, loaded.tokenizer)
        sampler.processors(loaded.model, 1, generation.max_new_tokens, eos)
    references = _references(scenario, loaded, warnings)
    if not options.states:
        message = "capture.states is off: the run has no states"
        warnings.append({"code": "no_states", "message": message})
    stored = set(filter(options.keeps, SITES))
    return Plan(scenario, loaded, sites, prompts, references, layers, stored, warnings)


def _model_warnings(loaded: Loaded, sites: ModelSites) -> list[dict]:
    notes = [*loaded.notes, *sampler.notes(loaded.model)]
    if not sites.decodes:
        unlike = "a decode step does not give what reading the same tokens at once gives"
        notes.append(("cache", f"{unlike}: the model's cache is at fault"))
    return [{"code": code, "message": message} for code, message in notes]


def _references(
    scenario: Scenario, loaded: Loaded, warnings: list[dict]
) -> list[tuple[str, list[dict], Rendered]]:
    """The examples of references as they will be read; `warnings` gets what to know of them."""
    chat = _references_chat(scenario, loaded)
    examples = []
    for i, reference in enumerate(scenario.reference_states):
        where = f"reference_states[{i}]"
        messages = [message.model_dump() for message in reference.messages]
        rendered = chat.conversation(messages, where)
        _check_length(rendered.ids, 0, loaded, where)
        remarks = _rendering_warnings(rendered, f"{where} ({reference.label}): message")
        # That contents are given as parts, the prompt's warning says.
        warnings += [remark for remark in remarks if remark["code"] != "content_parts"]
        examples.append((reference.label, messages, rendered))
    return examples


def _layers(names: list[int] | str, count: int) -> list[int]:
    """The layers that `capture.layers` means, ascending; negative ones count from the end.

    Raises:
        AlabError: the model has no such layer, or one is named twice.
    """
    if isinstance(names, str):
        return list(range(count))
    layers: dict[int, int] = {}
    for layer in names:
        if not -count <= layer < count:
            there = f"the model has 0 to {count - 1}, or from the end -1 to -{count}"
            raise AlabError(f"capture.layers: there is no layer {layer}; {there}", "", 2)
        if layer % count in layers:
            which = f"as {layers[layer % count]} and as {layer}"
            raise AlabError(
                f"capture.layers names layer {layer % count} twice, {which}", "Name it once.", 2
            )
        layers[layer % count] = layer
    return sorted(layers)


def refusal(scenario: Scenario, loaded: Loaded) -> str | None:
    """Why the chat template does not take a scenario's conversations; None where it does."""
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


def _references_chat(scenario: Scenario, loaded: Loaded) -> Chat:
    """As the first prompt that has messages, with whose states those of references are compared."""
    first = next((prompt for prompt in scenario.prompt if prompt.messages), None)
    return chat_of(loaded.tokenizer, first) if first else Chat(loaded.tokenizer)


def _rendering_warnings(rendered: Rendered, what: str) -> list[dict]:
    """What to know of a rendering: words that it lacks or has otherwise, and content parts."""

    def warning(code: str, indices: list[int], sentence: str) -> list[dict]:
        named = ", ".join(f"{k} ({rendered.messages[k]['role']})" for k in indices)
        return [{"code": code, "message": f"{what} {named}: {sentence}"}] if indices else []

    absent = "the chat template leaves out the words; no snapshot"
    partial = "the chat template keeps a part of the words, or writes others"
    parts = "given to the chat template as content parts: it drops texts"
    return [
        *warning("not_rendered", rendered.absent, absent),
        *warning("rewritten", rendered.partial, partial),
        *warning("content_parts", rendered.parts, parts),
    ]


def _snapshots(chat: Chat, rendered: Rendered, p: int, warnings: list[dict]) -> list[Snapshot]:
    """The states after each message, where the rendering up to it has what the whole one has."""
    snapshots = []
    for k, message in enumerate(rendered.messages):
        if k in rendered.absent:
            continue
        ends = k + 1 == len(rendered.messages)
        prefix = rendered if ends else chat.prefix(rendered.messages[: k + 1])
        if prefix is None:
            reason = f"the chat template does not take messages 0 to {k} alone; they have"
        elif lost := sorted(set(prefix.absent) - set(rendered.absent)):
            words = f"the words of message {lost[0]}"
            reason = f"rendered alone, messages 0 to {k} lack {words}; they have"
        elif not prefix.ids:
            reason = f"messages 0 to {k} have no tokens; they have"
        else:
            row = state_tokens.row_of((p, "snapshot", k, None), prefix)
            words = preview(spans.words(message))
            snapshots.append(Snapshot(k, message["role"], words, prefix.ids, row))
            continue
        said = {"code": "no_snapshot", "message": f"{reason} no snapshot"}
        warnings.append({"prompt_id": p} | said)
    return snapshots


def preview(text: str) -> str:
    """The first words of a message, at most 80 characters."""
    return " ".join(text[:200].split())[:80]


def _at_most(key: str, value: int, limit: int) -> None:
    if value > limit:
        raise AlabError(f"{key} is {value}; the model's vocabulary has {limit} tokens", exit_code=2)


def _check_length(ids: list[int], new: int, loaded: Loaded, where: str) -> None:
    limit = limits.context_length(loaded.model)
    weights.check_ids(ids, loaded.model, where)
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


def estimate_bytes(plan: Plan) -> int:
    """Bytes that a run will take on disk, about."""
    options, prompts, config = plan.scenario.capture, plan.prompts, plan.loaded.model.config
    amounts = Amounts(
        tokens=prompts.tokens,
        pairs=prompts.pairs if options.keeps("attention") else 0,
        states=prompts.snapshots + 3 * len(prompts) if plan.states else 0,
    )
    return amounts.bytes(
        layers=len(plan.layers),
        heads=config.get_text_config().num_attention_heads,
        hidden_size=plan.sites.hidden_size,
        width=sum(sum(widths.values()) for widths in plan.widths.values()),
        store_dtype=options.store_dtype,
    )


def check_room(plan: Plan, lake: Lake) -> None:
    """Compare what a run will take with what the disk has.

    Raises:
        AlabError: the run would not fit.
    """
    needed = estimate_bytes(plan)
    place = next(folder for folder in (lake.root, *lake.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        room = f"the disk of {place} has {free / 1e9:,.3f} GB free"
        raise AlabError(
            f"{plan.scenario.name} needs about {needed / 1e9:,.3f} GB; {room}",
            "Keep fewer layers or tensors (capture.*), free some space, or go ahead with --force.",
        )
