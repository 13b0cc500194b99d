"""Runs scenarios: prefill, decode, snapshots and references, every tensor on its way to the lake meanwhile."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor

from warehouse.capture import replies, state_tokens
from warehouse.capture.ending import ending, next_command
from warehouse.capture.facts import conclude, step_rows
from warehouse.capture.hooks import LayerTensors, Recorder
from warehouse.capture.pieces import Piece
from warehouse.capture.plan import Plan, Snapshot, chat_of, check_room, make_plan, preview, refusal
from warehouse.capture.prompt_rows import prompt_rows
from warehouse.capture.references import grouped, sequences
from warehouse.capture.rowgroups import Rows
from warehouse.capture.states import Key, StateFile
from warehouse.capture.transfer import Transfer
from warehouse.capture.writer import TensorWriter, leave_a_core
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.staging import StagedRun
from warehouse.models import limits, sampler, sites
from warehouse.models import loading as models
from warehouse.models import notices as messages
from warehouse.models import reader as generate
from warehouse.models.chat import Chat, Rendered
from warehouse.models.offload import device_of
from warehouse.models.probe import alike
from warehouse.scenario import Scenario

#: Told of progress: (what is happening, passes done, passes in all); of many prompts, prompts
#: instead of passes.
Progress = Callable[[str, int, int], None]


def capture(
    scenarios: list[Scenario],
    lakes: list[Lake],
    *,
    force: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """Run scenarios and publish their runs.

    Models are loaded once for neighbouring scenarios that share one, and freed before the next.

    Args:
        scenarios: what to run.
        lakes: where each goes.
        force: run although the disk looks too small.
        progress: told of each forward pass.
        tell: told each reply and where it ended, after its run's id was given, and what to do next.

    Yields:
        Ids of the new runs, each as soon as it is published.

    Raises:
        AlabError: a scenario cannot be run; nothing of it is kept, earlier ones are.
    """
    pairs = list(zip(scenarios, lakes, strict=True))
    ended: list[tuple[Lake, str]] = []
    for (spec, eager), group in groupby(
        pairs, key=lambda pair: (pair[0].model, pair[0].capture.attention_weights)
    ):
        report = progress or (lambda *_: None)
        report(f"loading {spec.id}", 0, 0)
        loaded = models.load(spec, attention_weights=eager)
        found = sites.discover(loaded.model)
        for scenario, lake in group:
            for single in _singles(scenario, loaded, report):
                ended.append(
                    (lake, capture_one(single, loaded, found, lake, force=force, progress=report))
                )
                yield ended[-1][1]
                if tell:
                    tell(ending(*ended[-1]))
        del loaded, found
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if tell:
        tell(next_command(ended))


def _singles(scenario: Scenario, loaded: models.Loaded, report: Progress) -> Iterator[Scenario]:
    """The runs of a scenario; where there is one for each message, without those that the template does not take."""
    runs = scenario.at_each_message()
    reasons = [None if run.name == scenario.name else refusal(run, loaded) for run in runs]
    for run, reason in zip(runs, reasons, strict=True):
        if reason is None or all(reasons):  # which then says so itself
            yield run
        else:
            report(f"{run.name} is left out: {reason}", 0, 0)


def capture_one(
    scenario: Scenario,
    loaded: models.Loaded,
    found: sites.ModelSites,
    lake: Lake,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> str:
    """Run one scenario on a loaded model and publish it; see `capture`.

    Returns:
        The run's id. The run is in the lake in any case; where another process holds the catalog,
        the next `alab` command registers it.
    """
    plan = make_plan(scenario, loaded, found)
    if not force:
        check_room(scenario, plan, found, loaded, lake)
    try:
        with (
            publishing(lake, scenario.name, progress) as (staged, rows),
            torch.inference_mode(),
            messages.listening(python_warnings=False) as heard,
        ):
            _Run(scenario, loaded, found, plan, staged, rows, progress).record()
            said = messages.notes(heard, "while it ran")
            rows["warnings"] += [{"code": code, "message": message} for code, message in said]
    except OSError as error:
        raise AlabError(
            f"cannot write to the warehouse {lake.warehouse}: {error.strerror or error}",
            "Nothing of this run was kept. Free some space, or name another place with --warehouse.",
        ) from error
    return staged.run_id


@contextmanager
def publishing(
    lake: Lake, name: str, progress: Progress = lambda *_: None
) -> Iterator[tuple[StagedRun, dict[str, list[dict]]]]:
    """Stage a run, publish it on a clean exit, and discard it after an exception.

    Args:
        lake: where it goes.
        name: what the run's id begins with.
        progress: told where the catalog is in use.

    Yields:
        The staged run, and the rows of its metadata tables, without the run's id, for the caller to
        fill.
    """
    lake.prepare()
    lake.sweep()
    staged = lake.stage(name)
    rows: dict[str, list[dict]] = {table: [] for table in catalog.table_names()}
    try:
        yield staged, rows
        staged.publish(MetadataWriter(staged, catalog.metadata_schemas(), rows))
    except BaseException:
        staged.discard()
        raise
    catalog.Catalog(lake).add(staged.run_id, progress)


def site_widths(
    plan: Plan, found: sites.ModelSites, wanted: Any
) -> dict[int | None, dict[str, int]]:
    """Width of each site that a plan captures, per layer; None for embeddings and logits."""
    widths: dict[int | None, dict[str, int]] = {
        n: {site: port.width for site, port in found.layers[n].ports.items() if site in plan.sites}
        for n in plan.layers
    }
    widths[None] = {"embeddings": found.embedding_width} if wanted.hidden_states else {}
    widths[None] |= {"logits": found.vocabulary} if wanted.logits else {}
    return widths


class _Run:
    """One run while it is being recorded."""

    def __init__(
        self,
        scenario: Scenario,
        loaded: models.Loaded,
        found: sites.ModelSites,
        plan: Plan,
        staged: StagedRun,
        rows: dict[str, list[dict]],
        progress: Progress,
    ):
        self.scenario, self.loaded, self.found, self.plan, self.staged = (
            scenario,
            loaded,
            found,
            plan,
            staged,
        )
        self.chat = Chat(loaded.tokenizer)
        self.eos = limits.eos_ids(loaded.model, loaded.tokenizer)
        self.reader = generate.Reader(loaded.model, trees=found.trees, rewinds=found.rewinds)
        self.transfer = Transfer(device_of(loaded.model))
        self.rows = rows
        self.created = datetime.now(UTC).replace(tzinfo=None)
        self._progress = progress
        self._done = 0
        new = scenario.generation.max_new_tokens
        passes = sum(
            new + (len(snapshots) + 1 if snapshots else 0) for _, _, snapshots in plan.prompts
        )
        self._many = len(plan.prompts) > 1  # then prompts are counted, else passes
        self._total = len(plan.prompts) if self._many else passes + len(plan.references)

    def record(self) -> None:
        """Run every pass; everything but the metadata is on disk afterwards, and that is in the rows."""
        wanted = self.scenario.capture
        widths = site_widths(self.plan, self.found, wanted)
        self.states = StateFile(self.staged, self.found.hidden_size, wanted.store_dtype)
        with (
            Recorder(
                self.loaded.model,
                self.found,
                sites=self.plan.read,
                layers=self.plan.layers,
                attention=wanted.attention_weights,
            ) as self.recorder,
            TensorWriter(self.staged, widths, wanted.store_dtype) as self.writer,
        ):
            for prompt_id in range(len(self.plan.prompts)):
                self._prompt(prompt_id)
                self._done += self._many
            self._references()
            self._progress("writing", self._total, self._total)
            self.states.close()
        self.rows |= conclude(
            self.staged,
            self.scenario,
            self.loaded,
            self.found,
            self.plan,
            self.recorder.note(self.writer.stats),
            self.created,
        )

    def _tick(self, what: str, count: int = 1) -> None:
        if self._many:
            what = what if what == "references" else "prompts"
        else:
            self._done += count
        self._progress(what, min(self._done, self._total), self._total)

    def _prompt(self, prompt_id: int) -> None:
        """Prefill, decode, then the snapshots, longest first, off the same cache."""
        messages, rendered, snapshots = self.plan.prompts[prompt_id]
        ids = rendered.ids
        regime = partial(limits.rotary_regime, self.loaded.model)

        def key(snapshot: Snapshot) -> Key:
            return prompt_id, "snapshot", snapshot.message_index, None

        # A prefix that ends where the next message begins is read off the prefill itself.
        rows: dict[Key, int] = {(prompt_id, "initial", 0, None): -1}
        rows |= {
            key(s): len(s.ids) - 1
            for s in snapshots
            if s.ids == ids[: len(s.ids)] and regime(len(s.ids)) == regime(len(ids))
        }
        generated, stop = self._generate(prompt_id, ids, rows)
        if prompt_id == len(self.plan.prompts) - 1:
            self.writer.flush()
        within = [s for s in snapshots if key(s) in rows and len(s.ids) < len(ids)]
        if (
            within
            and len(ids) > self.reader.reach
            and not self._is_alike_alone(key(within[-1]), within[-1].ids)
        ):
            for snapshot in within:  # later tokens have changed them: each is read by itself
                self.states.forget(key(snapshot))
                del rows[key(snapshot)]
        if snapshots:
            snapshots = [*snapshots, *self._snapshot_after_reply(prompt_id, rendered, generated)]
            # The longest first: what the next needs of the cache is mostly there.
            unread = {key(s): s.ids for s in reversed(snapshots) if key(s) not in rows}
            self._tick("snapshots", len(snapshots) - len(unread))
            self._read_states(unread, "snapshots")
        self.states.flush()
        kept = snapshots if self.plan.states else None
        for table, rows_of in prompt_rows(
            prompt_id, self.chat, messages, rendered, generated, stop, kept
        ).items():
            self.rows[table] += rows_of

    def _is_alike_alone(self, key: Key, ids: list[int]) -> bool:
        """Whether a state that was read within a longer sequence is the one of its own tokens, read alone."""
        alone = (*key[:2], -1, None)
        self.reader.rewind(0)
        self._read_states({alone: ids}, "snapshots")
        same = bool(alike(self.states.vectors(key), self.states.vectors(alone)).all())
        self.states.forget(alone)
        return same

    def _snapshot_after_reply(
        self, prompt_id: int, rendered: Rendered, generated: list[int]
    ) -> list[Snapshot]:
        """The state after the reply: its own tokens and what the template writes after it; else a warning."""
        chat, k = (
            chat_of(self.loaded.tokenizer, self.scenario.prompt[prompt_id]),
            len(rendered.messages),
        )
        tail = chat.after_reply(rendered.messages)
        marks = self.eos | self.chat.spelling.marks
        blank = len(list(takewhile(lambda i: self.chat.token_text(i).isspace(), tail or [])))
        ids = [*rendered.ids, *replies.continued(generated, tail or [], self.eos, marks, blank)]
        limit = limits.context_length(self.loaded.model)
        if tail is None:
            reason = "what the chat template writes after a reply there is not known"
        elif limit is not None and len(ids) > limit:
            reason = f"with what the chat template writes after it, it is longer than the model's context of {limit}"
        else:
            written = len(rendered.ids) + len(generated) >= len(ids) and not tail
            owner = (k if written else None, "assistant", not written)
            row = state_tokens.row(
                (prompt_id, "snapshot", k, None),
                ids,
                self.chat.token_text(ids[-1]),
                owner,
                generated=written,
            )
            return [
                Snapshot(
                    k,
                    "assistant",
                    preview(self.chat.decode(generated)),
                    ids,
                    row,
                    is_generated=True,
                )
            ]
        reason = f"the reply has no snapshot: {reason}"
        self.plan.warnings.append(
            {"prompt_id": prompt_id, "code": "no_snapshot", "message": reason}
        )
        return []

    def _generate(
        self, prompt_id: int, ids: list[int], rows: dict[Key, int]
    ) -> tuple[list[int], str]:
        """The prefill and the decode steps, each recorded whole.

        Args:
            prompt_id: the conversation.
            ids: its tokens.
            rows: states that are read off the prefill, and which token's each is.

        Returns:
            The generated tokens and why they ended.
        """
        options = self.scenario.generation
        asked = sampler.processors(self.loaded.model, len(ids), options.max_new_tokens, self.eos)
        chooser = sampler.Sampler(options, options.seed + prompt_id, asked)
        self.reader.rewind(0)
        generated: list[int] = []
        unread = ids
        for step in range(options.max_new_tokens):
            logits = self._step(prompt_id, step, unread, rows)
            token = chooser.choose(logits, self.reader.ids)
            row, top = step_rows(self.chat, logits, self.scenario.capture.top_k_probs)
            at = {"prompt_id": prompt_id, "step": step}
            self.rows["steps"].append(
                row
                | at
                | {
                    "kind": "decode" if step else "prefill",
                    "seq_len": len(self.reader.ids),
                    "generated_token_id": token,
                    "generated_token": self.chat.token_text(token),
                }
            )
            self.rows["top_tokens"] += [at | entry for entry in top]
            generated.append(token)
            unread = [token]
            if token in self.eos:
                self._done += 0 if self._many else options.max_new_tokens - len(generated)
                return generated, "eos"
        return generated, "length"

    def _step(self, prompt_id: int, step: int, ids: list[int], rows: dict[Key, int]) -> Tensor:
        """One recorded forward pass; gives the last token's (vocabulary,) logits."""
        kind = "decode" if step else "prefill"
        pieces = [Piece(prompt_id, step, kind, len(self.reader.ids), len(ids))]

        def sink(tensors: LayerTensors) -> None:
            host, ready = self.transfer(tensors)
            self.writer.put(Rows(pieces, host.layer, host.sites, host.attention, ready))
            if not self.plan.states:
                return
            if step:
                self.states.hold((prompt_id, "final", step, None), tensors.layer, tensors.sites)
            else:
                self.states.add(rows, tensors.layer, tensors.sites)

        # One token's pass with eager attention gave the same bits with one thread less in every
        # family that was tried (1,536 wide, float32 and bfloat16); the faster kinds of attention do
        # not.
        alike = (
            step
            and self.scenario.capture.attention_weights
            and device_of(self.loaded.model).type == "cpu"
        )
        with self.recorder.recording(sink), leave_a_core() if alike else nullcontext():
            logits = self.reader.read(ids, all_logits=self.scenario.capture.logits)
        outputs = LayerTensors(-1, {})
        if self.scenario.capture.hidden_states:
            outputs.sites["embeddings"] = self.recorder.embeddings
        if self.scenario.capture.logits:
            outputs.sites["logits"] = logits
        host, ready = self.transfer(outputs)
        if host.sites:
            self.writer.put(Rows(pieces, None, host.sites, None, ready))
        self._tick("reading the prompt" if step == 0 else "generating")
        return logits[-1].clone()  # a view would keep them all

    def _read_states(self, sequences: dict[Key, list[int]], what: str) -> None:
        """Read sequences for their last tokens' states alone."""
        keys = list(sequences)
        for tree in self.reader.as_trees(list(sequences.values())):
            # From the end: a model may compute only the last tokens in its later layers.
            rows = {keys[name]: end - len(tree.tokens) for name, end in tree.ends.items()}

            def sink(tensors: LayerTensors, rows: dict[Key, int] = rows) -> None:
                self.states.add(rows, tensors.layer, tensors.sites)

            with self.recorder.recording(sink):
                self.reader.read_tree(tree)
            self._tick(what, len(rows))

    def _references(self) -> None:
        references = grouped(self.plan.references)
        self._read_states(sequences(references), "references")
        for one in references:
            one.average(self.states)
        self.rows["reference_states"] += [one.row() for one in references]
        self.rows["state_tokens"] += [row for one in references for row in one.token_rows()]
        self.states.flush()
