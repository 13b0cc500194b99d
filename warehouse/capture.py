"""Runs scenarios: prefill, decode, snapshots and references, every tensor on its way to the lake meanwhile."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from warehouse import catalog, generate, models, sites
from warehouse.chat import Chat, Rendered
from warehouse.describe import describe, step_rows
from warehouse.errors import AlabError
from warehouse.gather import Rows
from warehouse.lake import Lake, StagedRun
from warehouse.plan import Plan, Snapshot, check_room, make_plan, preview
from warehouse.recorder import LayerTensors, Recorder
from warehouse.references import grouped
from warehouse.scenario import Scenario, find, load
from warehouse.states import Key, StateFile
from warehouse.transfer import Transfer
from warehouse.writer import TensorWriter, leave_a_core

#: Told of progress: (what is happening, passes done, passes in all).
Progress = Callable[[str, int, int], None]


def capture_files(
    paths: Sequence[Path | str], warehouse: Path | str | None = None, *, force: bool = False,
    progress: Progress | None = None,
) -> Iterator[str]:  # fmt: skip
    """Run scenario files, or all those in a directory, one after the other.

    All of them are read and checked before the first model is loaded.

    Args:
        paths: files and directories.
        warehouse: where the runs go; else each scenario's `output.dir`, else `./lab`.
        force: run although the disk looks too small.
        progress: told of each forward pass.

    Yields:
        Ids of the new runs, each as soon as it is published.

    Raises:
        AlabError: a scenario is invalid or cannot be run; nothing of it is kept, earlier ones are.
    """
    scenarios = [load(path) for path in find(list(paths))]
    for scenario in scenarios:
        if scenario.output.format != "parquet" and progress:
            progress("output.format: alab writes Parquet; alab export --format npz gives the json+npz layout", 0, 0)
    lakes = [Lake(warehouse or scenario.output.dir or "lab") for scenario in scenarios]
    yield from capture(scenarios, lakes, force=force, progress=progress)


def capture(
    scenarios: list[Scenario], lakes: list[Lake], *, force: bool = False, progress: Progress | None = None
) -> Iterator[str]:
    """Run scenarios and publish their runs.

    Models are loaded once for neighbouring scenarios that share one, and freed before the next.

    Args:
        scenarios: what to run.
        lakes: where each goes.
        force: run although the disk looks too small.
        progress: told of each forward pass.

    Yields:
        Ids of the new runs, each as soon as it is published.

    Raises:
        AlabError: a scenario cannot be run; nothing of it is kept, earlier ones are.
    """
    pairs = list(zip(scenarios, lakes, strict=True))
    for (spec, eager), group in groupby(pairs, key=lambda pair: (pair[0].model, pair[0].capture.attention_weights)):
        report = progress or (lambda *_: None)
        report(f"loading {spec.id}", 0, 0)
        loaded = models.load(spec, attention_weights=eager)
        found = sites.discover(loaded.model)
        for scenario, lake in group:
            for single in scenario.at_each_message():
                yield capture_one(single, loaded, found, lake, force=force, progress=report)
        del loaded, found
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def capture_one(
    scenario: Scenario, loaded: models.Loaded, found: sites.ModelSites, lake: Lake, *,
    force: bool = False, progress: Progress = lambda *_: None,
) -> str:  # fmt: skip
    """Run one scenario on a loaded model and publish it; see `capture`.

    Returns:
        The run's id. The run is in the lake in any case; where another process holds the catalog, the next
        `alab` command registers it.
    """
    plan = make_plan(scenario, loaded, found)
    if not force:
        check_room(scenario, plan, found, loaded, lake)
    try:
        with publishing(lake, scenario.name, progress) as (staged, rows), torch.inference_mode():
            _Run(scenario, loaded, found, plan, staged, rows, progress).record()
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
        The staged run, and the rows of its metadata tables, without the run's id, for the caller to fill.
    """
    lake.prepare()
    lake.sweep()
    staged = lake.stage(name)
    rows: dict[str, list[dict]] = {table: [] for table in catalog.table_names()}
    try:
        yield staged, rows
        schemas, run = catalog.metadata_schemas(), {"run_id": staged.run_id}
        staged.publish(
            {table: pa.Table.from_pylist([run | row for row in some], schemas[table]) for table, some in rows.items()}
        )
    except BaseException:
        staged.discard()
        raise
    if problem := catalog.register(lake):
        progress(f"{staged.run_id} is in the lake; the next alab command registers it: {problem}", 0, 0)


def site_widths(
    plan: Plan, found: sites.ModelSites, wanted: Any, vocabulary: int
) -> dict[int | None, dict[str, int]]:
    """Width of each site that a plan captures, per layer; None for embeddings and logits."""
    widths: dict[int | None, dict[str, int]] = {
        n: {site: port.width for site, port in found.layers[n].ports.items() if site in plan.sites}
        for n in plan.layers
    }
    widths[None] = {"embeddings": found.hidden_size} if wanted.hidden_states else {}
    widths[None] |= {"logits": vocabulary} if wanted.logits else {}
    return widths


class _Run:
    """One run while it is being recorded."""

    def __init__(
        self, scenario: Scenario, loaded: models.Loaded, found: sites.ModelSites, plan: Plan,
        staged: StagedRun, rows: dict[str, list[dict]], progress: Progress,
    ):  # fmt: skip
        self.scenario, self.loaded, self.found, self.plan, self.staged = scenario, loaded, found, plan, staged
        self.config = loaded.model.config.get_text_config()
        self.chat = Chat(loaded.tokenizer)
        self.eos = models.eos_ids(loaded.model, loaded.tokenizer)
        self.reader = generate.Reader(loaded.model, trees=found.trees, rewinds=found.rewinds)
        self.transfer = Transfer(loaded.model.device)
        self.rows = rows
        self.created = datetime.now(UTC).replace(tzinfo=None)
        self._progress = progress
        self._done = 0
        new = scenario.generation.max_new_tokens
        passes = sum(new + (len(snapshots) + 1 if snapshots else 0) for _, _, snapshots in plan.prompts)
        self._total = passes + len(plan.references) * scenario.capture.hidden_states

    def record(self) -> None:
        """Run every pass; everything but the metadata is on disk afterwards, and that is in the rows."""
        wanted = self.scenario.capture
        widths = site_widths(self.plan, self.found, wanted, self.config.vocab_size)
        self.states = StateFile(self.staged, self.found.hidden_size, wanted.store_dtype)
        with (
            Recorder(
                self.loaded.model, self.found, sites=self.plan.sites, layers=self.plan.layers,
                attention=wanted.attention_weights,
            ) as self.recorder,
            TensorWriter(self.staged, widths, wanted.store_dtype) as self.writer,
        ):  # fmt: skip
            for prompt_id in range(len(self.plan.prompts)):
                self._prompt(prompt_id)
            if wanted.hidden_states:
                self._references()
            self._progress("writing", self._total, self._total)
            self.states.close()
        about = describe(self.scenario, self.loaded, self.found, self.plan, self.writer.stats, self.created)
        self.rows |= about

    def _tick(self, what: str, count: int = 1) -> None:
        self._done += count
        self._progress(what, min(self._done, self._total), self._total)

    def _prompt(self, prompt_id: int) -> None:
        """Prefill, decode, then the snapshots, longest first, off the same cache."""
        messages, rendered, snapshots = self.plan.prompts[prompt_id]
        ids = rendered.ids
        regime = partial(models.rotary_regime, self.loaded.model)

        def key(snapshot: Snapshot) -> Key:
            return prompt_id, "snapshot", snapshot.message_index, None

        # A prefix that ends where the next message begins is read off the prefill itself.
        rows: dict[Key, int] = {(prompt_id, "initial", 0, None): -1}
        rows |= {
            key(s): len(s.ids) - 1 for s in snapshots
            if s.ids == ids[: len(s.ids)] and regime(len(s.ids)) == regime(len(ids))
        }  # fmt: skip
        generated, stop = self._generate(prompt_id, ids, rows)
        if prompt_id == len(self.plan.prompts) - 1:
            self.writer.flush()
        text = self.chat.decode(generated)
        if snapshots:
            snapshots = [*snapshots, *self._snapshot_after_reply(messages, text)]
            # The longest first: what the next needs of the cache is mostly there.
            unread = {key(s): s.ids for s in reversed(snapshots) if key(s) not in rows}
            self._tick("snapshots", len(snapshots) - len(unread))
            self._read_states(unread, "snapshots")
        self.states.flush()
        self._prompt_rows(prompt_id, messages, rendered, snapshots, generated, text, stop)

    def _snapshot_after_reply(self, messages: list[dict], text: str) -> list[Snapshot]:
        replied = self.chat.prefix([*messages, {"role": "assistant", "content": text}])
        ids = self.chat.ids(replied) if replied else []
        limit = models.context_length(self.loaded.model)
        if not ids or (limit is not None and len(ids) > limit):
            return []
        return [Snapshot(len(messages), "assistant", preview(text), ids, is_generated=True)]

    def _generate(self, prompt_id: int, ids: list[int], rows: dict[Key, int]) -> tuple[list[int], str]:
        """The prefill and the decode steps, each recorded whole.

        Args:
            prompt_id: the conversation.
            ids: its tokens.
            rows: states that are read off the prefill, and which token's each is.

        Returns:
            The generated tokens and why they ended.
        """
        options = self.scenario.generation
        sampler = generate.Sampler(options, options.seed + prompt_id)
        self.reader.rewind(0)
        generated: list[int] = []
        unread = ids
        for step in range(options.max_new_tokens):
            logits = self._step(prompt_id, step, unread, rows)
            token = sampler.choose(logits)
            row, top = step_rows(self.chat, logits, self.scenario.capture.top_k_probs)
            at = {"prompt_id": prompt_id, "step": step}
            self.rows["steps"].append(row | at | {
                "kind": "decode" if step else "prefill", "seq_len": len(self.reader.ids),
                "generated_token_id": token, "generated_token": self.chat.token_text(token),
            })  # fmt: skip
            self.rows["top_tokens"] += [at | entry for entry in top]
            generated.append(token)
            unread = [token]
            if token in self.eos:
                self._done += options.max_new_tokens - len(generated)
                return generated, "eos"
        return generated, "length"

    def _step(self, prompt_id: int, step: int, ids: list[int], rows: dict[Key, int]) -> Tensor:
        """One recorded forward pass; gives the last token's (vocabulary,) logits."""
        kind = "decode" if step else "prefill"
        position = len(self.reader.ids)

        def sink(tensors: LayerTensors) -> None:
            host, ready = self.transfer(tensors)
            self.writer.put(Rows(prompt_id, step, kind, position, host.layer, host.sites, host.attention, ready))
            if step:
                self.states.hold((prompt_id, "final", step, None), tensors.layer, tensors.sites)
            else:
                self.states.add(rows, tensors.layer, tensors.sites)

        # One token's pass with eager attention gave the same bits with one thread less in every family that was tried
        # (1,536 wide, float32 and bfloat16); the faster kinds of attention do not.
        alike = step and self.scenario.capture.attention_weights and self.loaded.model.device.type == "cpu"
        with self.recorder.recording(sink), leave_a_core() if alike else nullcontext():
            logits = self.reader.read(ids, all_logits=self.scenario.capture.logits)
        outputs = LayerTensors(-1, {})
        if self.scenario.capture.hidden_states:
            outputs.sites["embeddings"] = self.recorder.embeddings
        if self.scenario.capture.logits:
            outputs.sites["logits"] = logits
        host, ready = self.transfer(outputs)
        if host.sites:
            self.writer.put(Rows(prompt_id, step, kind, position, None, host.sites, None, ready))
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
        self._read_states({key: ids for one in references for key, ids in one.sequences().items()}, "references")
        for one in references:
            one.average(self.states)
        self.rows["reference_states"] += [one.row() for one in references]
        self.states.flush()

    def _prompt_rows(
        self, prompt_id: int, messages: list[dict], rendered: Rendered, snapshots: list[Snapshot],
        generated: list[int], text: str, stop: str,
    ) -> None:  # fmt: skip
        at = {"prompt_id": prompt_id}
        n = len(rendered.ids)
        self.rows["prompts"].append(at | {
            "n_prompt_tokens": n, "n_generated": len(generated), "stop_reason": stop,
            "prompt_text": rendered.text, "generated_text": text,
        })  # fmt: skip
        owners = [(*owner, False) for owner in rendered.owners]
        owners += [(len(messages), "assistant", False, True)] * len(generated)
        for position, (token_id, owner) in enumerate(zip([*rendered.ids, *generated], owners, strict=True)):
            step = 0 if position < n else position - n + 1
            self.rows["tokens"].append(at | {
                "step": step if position < n + len(generated) - 1 else None, "position": position,
                "token_id": token_id, "token": self.chat.token_text(token_id), "message_index": owner[0],
                "role": owner[1], "is_template": owner[2], "is_generated": owner[3],
            })  # fmt: skip
        for k, message in enumerate([*messages, {"role": "assistant", "content": text}]):
            positions = [position for position, owner in enumerate(owners) if owner[0] == k]
            self.rows["messages"].append(at | {
                "message_index": k, "role": message["role"], "content": message["content"],
                "first_position": min(positions, default=None), "last_position": max(positions, default=None),
                "is_generated": k == len(messages),
            })  # fmt: skip
        self.rows["snapshots"] += [
            at | {"message_index": s.message_index, "role": s.role, "preview": s.preview, "n_tokens": len(s.ids),
                  "is_generated": s.is_generated}
            for s in snapshots
        ]  # fmt: skip
