"""Runs a scenario: prefill, decode, snapshots and references, every tensor put into a session."""

from collections.abc import Set
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from warehouse.capture import replies, state_tokens
from warehouse.capture.dataset_prompts import DatasetPrompts
from warehouse.capture.dataset_run import dataset_plan, means_of
from warehouse.capture.hooks import LayerTensors
from warehouse.capture.pieces import Piece
from warehouse.capture.plan import PlannedPrompt, Snapshot, chat_of, check_room, make_plan, preview
from warehouse.capture.prompt_rows import prompt_rows
from warehouse.capture.references import read_references
from warehouse.capture.session import Progress, Session, Watch, kind, session
from warehouse.capture.states import Key
from warehouse.capture.writer import leave_a_core
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.models import limits, notices, sampler
from warehouse.models.batch import Batch
from warehouse.models.chat import Owner, Rendered
from warehouse.models.loading import Loaded
from warehouse.models.offload import device_of
from warehouse.models.ports import ModelSites
from warehouse.models.probe import alike
from warehouse.models.reader import Reader
from warehouse.scenario import Scenario


def capture_one(
    scenario: Scenario,
    loaded: Loaded,
    sites: ModelSites,
    lake: Lake,
    *,
    source: Any = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
    watch: Watch = lambda *_, **__: None,
) -> str:
    """Run one scenario on a loaded model and publish it; see `scenarios.capture`.

    Of a dataset each row is answered, one after the other.

    Returns:
        The run's id. The run is in the lake in any case; where another process holds the catalog,
        the next `alab` command registers it.
    """
    if scenario.dataset is not None:
        plan, _ = dataset_plan(scenario, loaded, sites, source, progress)
    else:
        plan = make_plan(scenario, loaded, sites)
    if not force:
        check_room(plan, lake)
    try:
        with torch.inference_mode(), session(plan, lake, progress) as run:
            with notices.listening(python_warnings=False) as messages:
                watch("begun", run=run.run_id)
                _Conversations(run, progress, watch).record()
            notes = notices.notes(messages, "while it ran")
            run.warnings += [{"code": code, "message": message} for code, message in notes]
    except OSError as error:
        raise AlabError(
            f"cannot write to the warehouse {lake.warehouse}: {error.strerror or error}",
            "Nothing of this run was kept. "
            "Free some space, or name another place with --warehouse.",
        ) from error
    return run.run_id


class _Conversations:
    """The prompts and references of a plan, read one after the other into a session."""

    def __init__(self, run: Session, progress: Progress, watch: Watch):
        self.run, self.plan, loaded = run, run.plan, run.plan.loaded
        self.model, self.scenario, self.chat = loaded.model, self.plan.scenario, run.chat
        self.eos = limits.eos_ids(loaded.model, loaded.tokenizer)
        self.reader = Reader(
            loaded.model, trees=self.plan.sites.trees, rewinds=self.plan.sites.rewinds
        )
        #: The rows of a dataset that are answered; None where prompts are written out.
        self.rows = self.plan.prompts if isinstance(self.plan.prompts, DatasetPrompts) else None
        self._progress, self._watch = progress, watch
        self._done = 0
        self._many = len(self.plan.prompts) > 1  # then prompts are counted, else passes
        self._total = len(self.plan.prompts) if self._many else self._passes()

    def _passes(self) -> int:
        """Passes that one prompt and the references need, at the most."""
        snapshots = self.plan.prompts.snapshots
        new = self.scenario.generation.max_new_tokens
        return new + (snapshots + 1 if snapshots else 0) + len(self.plan.references)

    def record(self) -> None:
        """Run every pass."""
        for prompt_id in self.plan.prompts.readable:
            self._prompt(prompt_id)
            self._done += self._many
        read_references(self.run, self.reader, partial(self._tick, "references"))
        self._progress("writing", self._total, self._total)

    def _tick(self, what: str, count: int = 1) -> None:
        if self._many:
            what = what if what == "references" else "prompts"
        else:
            self._done += count
        self._progress(what, min(self._done, self._total), self._total)

    def _prompt(self, prompt_id: int) -> None:
        """Prefill, decode, then the snapshots off the same cache, and their rows."""
        prompt = self.plan.prompts[prompt_id]
        places = self._places(prompt_id, prompt)
        generated, stop = self._generate(prompt_id, prompt.rendered.ids, places)
        if prompt_id == self.plan.prompts.readable[-1]:
            self.run.tensors.flush()
        snapshots = self._snapshots(prompt_id, prompt, places, generated)
        self.run.states.flush()
        rows = prompt_rows(
            prompt_id, self.chat, prompt, generated, stop, snapshots if self.plan.states else None
        )
        if self.rows is not None:
            alone = {"shard": 0, "batch": prompt_id, "way": "alone"}
            alone |= {"padded": len(prompt.rendered.ids)}
            rows |= self.rows.rows(prompt_id, alone)
            rows["prompts"][0]["row_id"] = self.rows.dataset.ids[prompt_id]
        for table, some in rows.items():
            self.run.add(table, some)

    def _places(self, prompt_id: int, prompt: PlannedPrompt) -> dict[Key, int]:
        """The states that are read off the prefill, and which token's each is.

        They are the initial one, and of each prefix that ends where the next message begins.
        """
        ids = prompt.rendered.ids
        places: dict[Key, int] = {(prompt_id, "initial", 0, None): -1}
        regime = partial(limits.rotary_regime, self.model)
        for s in prompt.snapshots:
            if s.ids == ids[: len(s.ids)] and regime(len(s.ids)) == regime(len(ids)):
                places[_key(prompt_id, s)] = len(s.ids) - 1
        return places

    def _snapshots(
        self, prompt_id: int, prompt: PlannedPrompt, places: dict[Key, int], generated: list[int]
    ) -> list[Snapshot]:
        """Read the snapshots that the prefill did not give, and that after the reply; gives all."""
        if not prompt.snapshots:
            return []
        ids, key = prompt.rendered.ids, partial(_key, prompt_id)
        within = [s for s in prompt.snapshots if key(s) in places and len(s.ids) < len(ids)]
        if (
            within
            and len(ids) > self.reader.reach
            and not self._is_alike_alone(key(within[-1]), within[-1].ids)
        ):
            for snapshot in within:  # later tokens have changed them: each is read by itself
                self.run.states.forget(key(snapshot))
                del places[key(snapshot)]
        snapshots = [*prompt.snapshots, *self._after_reply(prompt_id, prompt.rendered, generated)]
        # The longest first: what the next needs of the cache is mostly there.
        unread = {key(s): s.ids for s in reversed(snapshots) if key(s) not in places}
        self._tick("snapshots", len(snapshots) - len(unread))
        self._read_snapshots(unread)
        return snapshots

    def _is_alike_alone(self, key: Key, ids: list[int]) -> bool:
        """Whether a state read within a longer sequence is that of its own tokens, read alone."""
        prompt_id, state, _, _ = key
        alone = (prompt_id, state, -1, None)
        states = self.run.states
        self.reader.rewind(0)
        self._read_snapshots({alone: ids})
        same = bool(alike(states.vectors(key), states.vectors(alone)).all())
        states.forget(alone)
        return same

    def _after_reply(
        self, prompt_id: int, rendered: Rendered, generated: list[int]
    ) -> list[Snapshot]:
        """The state after the reply and what the template writes after it; else a warning."""
        chat = chat_of(self.plan.loaded.tokenizer, self.scenario.prompt[prompt_id])
        tail = chat.after_reply(rendered.messages)
        marks = self.eos | self.chat.spelling.marks
        blank = len(list(takewhile(lambda i: self.chat.token_text(i).isspace(), tail or [])))
        ids = [*rendered.ids, *replies.continued(generated, tail or [], self.eos, marks, blank)]
        limit = limits.context_length(self.model)
        if tail is None:
            reason = "what the chat template writes after a reply there is not known"
        elif limit is not None and len(ids) > limit:
            longer = f"it is longer than the model's context of {limit}"
            reason = f"with what the chat template writes after it, {longer}"
        else:
            k = len(rendered.messages)
            written = len(rendered.ids) + len(generated) >= len(ids) and not tail
            owner: Owner = (k if written else None, "assistant", not written)
            key, text = (prompt_id, "snapshot", k, None), self.chat.token_text(ids[-1])
            row = state_tokens.row(key, ids, text, owner, generated=written)
            words = preview(self.chat.decode(generated))
            return [Snapshot(k, "assistant", words, ids, row, is_generated=True)]
        message = f"the reply has no snapshot: {reason}"
        row = {"prompt_id": prompt_id, "code": "no_snapshot", "message": message}
        self.run.add("warnings", [row])
        return []

    def _generate(
        self, prompt_id: int, ids: list[int], places: dict[Key, int]
    ) -> tuple[list[int], str]:
        """The prefill and the decode steps, each recorded whole.

        Args:
            prompt_id: the conversation.
            ids: its tokens.
            places: states that are read off the prefill, and which token's each is.

        Returns:
            The generated tokens and why they ended.
        """
        options = self.scenario.generation
        own = sampler.processors(self.model, len(ids), options.max_new_tokens, self.eos)
        chooser = sampler.Sampler(options, options.seed + prompt_id, own)
        self.reader.rewind(0)
        generated: list[int] = []
        for step in range(options.max_new_tokens):
            logits = self._step(prompt_id, step, generated[-1:] or ids, places)
            token = chooser.choose(logits, self.reader.ids)
            row = self.run.step_row(prompt_id, step, len(self.reader.ids), logits)
            choice = {"generated_token_id": token, "generated_token": self.chat.token_text(token)}
            self.run.add("steps", [row | choice])
            self._watch("token", prompt=prompt_id, step=step, text=choice["generated_token"])
            generated.append(token)
            if token in self.eos:
                self._done += 0 if self._many else options.max_new_tokens - len(generated)
                return generated, "eos"
        return generated, "length"

    def _step(self, prompt_id: int, step: int, ids: list[int], places: dict[Key, int]) -> Tensor:
        """One recorded forward pass; gives the last token's (vocabulary,) logits."""
        options = self.scenario.capture
        pieces, batch, means = self._kept(prompt_id, step, ids)

        def sink(tensors: LayerTensors) -> None:
            if tensors.layer in self.plan.layers:
                self.run.put(pieces, replace(tensors, means={}))
            self.run.add_means([prompt_id], tensors)
            if self.plan.states:
                self.run.add_states(prompt_id, step, tensors, places)

        # One token's pass with eager attention gave the same bits with one thread less in every
        # family that was tried (1,536 wide, float32 and bfloat16); the faster kinds of attention do
        # not.
        same = step and options.keeps("attention") and device_of(self.model).type == "cpu"
        recording = self.run.recorder.recording(sink, batch, means)
        with recording, leave_a_core() if same else nullcontext():
            logits = self.reader.read(ids, all_logits=options.keeps("logits"))
        outputs = LayerTensors(-1, {})
        if options.keeps("embeddings"):
            assert self.run.recorder.embeddings is not None  # a pass was made
            outputs.sites["embeddings"] = self.run.recorder.embeddings
        if options.keeps("logits"):
            outputs.sites["logits"] = logits if batch is None else batch.pick(logits)
        self.run.put(pieces, outputs)
        self._tick("reading the prompt" if step == 0 else "generating")
        return logits[-1].clone()  # a view would keep them all

    def _kept(
        self, prompt_id: int, step: int, ids: list[int]
    ) -> tuple[list[Piece], Batch | None, Set[tuple[int, str]]]:
        """What is kept of a pass: all of it, but of a dataset's prompt what selectors name."""
        if self.rows is None or step:
            return [Piece(prompt_id, step, kind(step), len(self.reader.ids), len(ids))], None, set()
        batch = Batch([ids], [self.rows.places(prompt_id)])
        pieces = [Piece(prompt_id, 0, kind(0), first, count) for _, first, count in batch.spans]
        return pieces, batch, means_of(self.plan)

    def _read_snapshots(self, sequences: dict[Key, list[int]]) -> None:
        self.run.read_states(self.reader, sequences, partial(self._tick, "snapshots"))


def _key(prompt_id: int, snapshot: Snapshot) -> Key:
    return prompt_id, "snapshot", snapshot.message_index, None
