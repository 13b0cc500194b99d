"""Reads a dataset into a run: batch by batch, shard by shard, each shown to be right.

dataset ─→ prompts: tokens, and the positions that selectors keep ─→ batch plan ─→ shards
shard ─→ batches ─→ Reader.read_batch; hooks pick the rows ─→ session ─→ files, rows of metadata
         the first batch of a shape waits until prompts of it, read alone, gave the same
all shards ─→ one run, published as any other

A shard that is finished stays, whatever happens to the capture: `--resume` goes on after it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import torch

from warehouse.capture import facts
from warehouse.capture.batches import BatchPlan, PlannedBatch, make_batches
from warehouse.capture.dataset import Dataset
from warehouse.capture.dataset_prompts import DatasetPrompts
from warehouse.capture.hooks import LayerTensors
from warehouse.capture.pieces import Piece
from warehouse.capture.plan import Plan, check_room, make_plan
from warehouse.capture.prompt_rows import read_rows
from warehouse.capture.proof import Proof
from warehouse.capture.references import read_references
from warehouse.capture.request import changed, refuse_changes, request_of
from warehouse.capture.rounding import Stats
from warehouse.capture.session import Progress, Session, Watch
from warehouse.capture.trees import choose_trees, cut_trees
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.staging import Shard, StagedRun
from warehouse.models import limits
from warehouse.models.batch import Batch
from warehouse.models.branches import Branches
from warehouse.models.loading import Loaded
from warehouse.models.offload import device_of
from warehouse.models.ports import ModelSites
from warehouse.models.reader import Reader
from warehouse.scenario import Scenario
from warehouse.vocabulary import STATE_SITES

#: Prompts of a batch, at the most, and tokens that a pass reads together; more on a GPU.
SIZES = {"cpu": (64, 1 << 10), "cuda": (512, 1 << 15)}
#: Bytes of recorded rows of a batch that may be held until they are shown to be right.
HELD_BYTES = 1 << 28
#: What is captured, its prompts, and what was asked for, as a run that is begun keeps it.
Prepared = tuple[Plan, DatasetPrompts, dict[str, Any]]


def capture_dataset(
    scenario: Scenario,
    loaded: Loaded,
    sites: ModelSites,
    lake: Lake,
    *,
    source: Any = None,
    resume: bool | None = False,
    force: bool = False,
    progress: Progress = lambda *_: None,
    watch: Watch = lambda *_, **__: None,
) -> str:
    """Read the rows of a dataset, each a prompt, and publish them as a run.

    Args:
        scenario: the request.
        loaded: the model.
        sites: where its sites are, and whether it reads batches rightly.
        lake: where the run goes.
        source: the source, where it is a caller's table.
        resume: go on with the newest capture of the scenario that was stopped; None where there is
            one, and of this very request.
        force: run although the disk looks too small.
        progress: told of prompts.
        watch: told when the run begins.

    Returns:
        The run's id.

    Raises:
        AlabError: a row cannot be read, there is nothing to go on with, or what was asked for has
            changed since.
    """
    if not scenario.is_read_only:
        raise AlabError(
            f"{scenario.name} is no dataset that is read only: there is nothing to go on with",
            "Capture it without --resume.",
        )
    given: dict[str, Any] = {"source": source, "force": force, "progress": progress}
    plan, prompts, asked = prepare(scenario, loaded, sites, lake, **given)
    if stopped := None if resume is False else _stopped(lake, asked, same=resume is None):
        staged = lake.resume(stopped)
    else:
        asked["trees"] = trees_of(plan, prompts, asked)
        staged = lake.stage(scenario.name)
        staged.ask(asked)
    watch("begun", run=staged.run_id)
    with keeping(staged, lake, "--resume"):
        asked = staged.request or asked
        batches = batches_of(plan, prompts, asked)
        _Shards(plan, prompts, batches, staged, progress).read()
        _publish(plan, prompts, batches, staged, datetime.fromisoformat(asked["began"]))
    catalog.Catalog(lake).add(staged.run_id, progress)
    return staged.run_id


def prepare(
    scenario: Scenario,
    loaded: Loaded,
    sites: ModelSites,
    lake: Lake,
    *,
    source: Any = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Prepared:
    """Check a dataset that is read only against a model and the disk, and note what was asked for.

    Raises:
        AlabError: as `capture_dataset`.
    """
    plan, prompts = dataset_plan(scenario, loaded, sites, source, progress)
    if not force:
        check_room(plan, lake)
    lake.prepare()
    lake.sweep()
    return (
        plan,
        prompts,
        request_of(plan, prompts)
        | {
            "size": _batch_size(plan, prompts),
            "prompts": len(prompts.readable),
            "began": datetime.now(UTC).replace(tzinfo=None).isoformat(),
        },
    )


def trees_of(plan: Plan, prompts: DatasetPrompts, asked: dict) -> dict[str, int] | None:
    """Whether trees are the way to read a dataset that is begun; measured here and now."""
    return choose_trees(plan, prompts, asked["size"], HELD_BYTES)


def batches_of(plan: Plan, prompts: DatasetPrompts, asked: dict) -> BatchPlan:
    """The batch plan of a capture, by what was asked when it was begun."""
    cut = cut_trees(plan, prompts, asked.get("trees"))
    given = prompts.lengths, prompts.dataset.ids, prompts.readable
    return make_batches(*given, asked["size"], cut=cut, parts=asked.get("shards", 1))


@contextmanager
def keeping(staged: StagedRun, lake: Lake, way: str) -> Iterator[None]:
    """Let go of a run where something fails; what was finished of it stays, as the error says."""
    try:
        yield
    except BaseException as error:
        staged.release()
        error.add_note(f"what was finished of {staged.run_id} is kept: go on with {way}")
        if isinstance(error, OSError):
            raise AlabError(
                f"cannot write to the warehouse {lake.warehouse}: {error.strerror or error}",
                f"What was finished is kept. Free some space, and go on with {way}.",
            ) from error
        raise


def dataset_plan(
    scenario: Scenario,
    loaded: Loaded,
    sites: ModelSites,
    source: Any = None,
    progress: Progress = lambda *_: None,
) -> tuple[Plan, DatasetPrompts]:
    """Check a dataset and its scenario against a model; runs nothing.

    Raises:
        AlabError: with exit code 2; as `Dataset`, `DatasetPrompts` and `make_plan`.
    """
    assert scenario.dataset is not None  # who calls this has looked
    warnings: list[dict] = []
    dataset = Dataset(scenario.dataset, source)
    prompts = DatasetPrompts(dataset, scenario, loaded, warnings, progress)
    plan = make_plan(scenario.model_copy(update={"prompt": []}), loaded, sites)
    warnings = plan.warnings + warnings
    return replace(plan, scenario=scenario, prompts=prompts, warnings=warnings), prompts


def means_of(plan: Plan) -> frozenset[tuple[int, str]]:
    """(layer, site) of the means over tokens that are kept: always of what layer 0 reads."""
    own = {(0, "hidden_in")}
    if "mean" in (plan.scenario.capture.positions or ()):
        named = plan.stored & set(STATE_SITES)
        own |= {(layer, site) for layer in plan.layers for site in named}
    return frozenset(own)


def _stopped(lake: Lake, asked: dict, *, same: bool) -> str | None:
    """The newest run of a request that was stopped; with `same` None where there is none."""
    name = asked["scenario"]["name"]
    stopped = {
        run_id: request
        for run_id, request in lake.unfinished().items()
        if request["scenario"]["name"] == name and "shards" not in request
    }
    unchanged = [run_id for run_id, run in stopped.items() if changed(run, asked) is None]
    if same and not unchanged:
        return None
    if not stopped:
        hint = "Those there are: alab runs --unfinished"
        raise AlabError(f"there is no capture of {name} to go on with", hint)
    run_id = max(unchanged or stopped, key=lambda run_id: stopped[run_id]["began"])
    refuse_changes(run_id, stopped[run_id], asked, "Begin anew, without --resume")
    return run_id


def _batch_size(plan: Plan, prompts: DatasetPrompts) -> int:
    """Prompts of a batch, by their length and by the memory that their rows take."""
    most, tokens = SIZES["cuda" if device_of(plan.loaded.model).type == "cuda" else "cpu"]
    read = sorted(prompts.lengths[n] for n in prompts.readable)
    a_row = 4 * sum(sum(widths.values()) for widths in plan.widths.values())
    a_prompt = max(1, a_row * prompts.tokens // len(read))
    return max(1, min(most, tokens // read[len(read) // 2], HELD_BYTES // a_prompt))


class _Shards:
    """The shards of a dataset, read one after the other."""

    def __init__(
        self,
        plan: Plan,
        prompts: DatasetPrompts,
        batches: BatchPlan,
        staged: StagedRun,
        progress: Progress,
    ):
        self.plan, self.prompts, self.batches, self.staged = plan, prompts, batches, staged
        self.reader = Reader(plan.loaded.model)
        self.means = means_of(plan)
        self._progress = progress
        self._done = self._total = 0

    def read(self, numbers: Iterable[int] | None = None) -> None:
        """Read the shards that are not there, all or some of them."""
        chosen = range(len(self.batches.shards)) if numbers is None else list(numbers)
        shards = [self.batches.shards[number] for number in chosen]
        self._total = sum(len(batch.prompts) for shard in shards for batch in shard)
        known: dict[tuple[int, int], bool] = {}  # by shards before, whoever read them and when
        for number, batches in zip(chosen, shards, strict=True):
            shard = Shard(self.staged, number)
            if not shard.is_there:
                shard.begin()
                self._read_shard(shard, batches, known, references=number == 0)
            else:
                self._tick(sum(len(batch.prompts) for batch in batches))
            known |= Stats.from_json(shard.record()).shapes

    def _tick(self, count: int) -> None:
        self._done += count
        self._progress("prompts", self._done, self._total)

    def _read_shard(
        self,
        shard: Shard,
        batches: Sequence[PlannedBatch],
        known: dict[tuple[int, int], bool],
        *,
        references: bool,
    ) -> None:
        metadata = MetadataWriter(shard, catalog.metadata_schemas())
        run = Session(self.plan, shard, metadata)
        proof = Proof(self.plan, batches, known)
        try:
            with torch.inference_mode(), run.recorder, run.tensors:
                for batch in batches:
                    self._read_batch(run, batch, proof)
                    self._tick(len(batch.prompts))
                if references:
                    sites = self.plan.sites
                    reader = Reader(self.reader.model, trees=sites.trees, rewinds=sites.rewinds)
                    read_references(run, reader)
                run.states.close()
            run.recorder.note(run.tensors.stats)
            run.tensors.stats.batch, run.tensors.stats.shapes = proof.errors, proof.shapes
            metadata.add("warnings", proof.warnings)
            metadata.finish()
        except BaseException:
            metadata.abandon()
            raise
        shard.finish(run.tensors.stats.to_json())

    def _read_batch(self, run: Session, batch: PlannedBatch, proof: Proof) -> None:
        """Read a batch, or its prompts one by one where they would be other numbers together."""
        # Rotary frequencies that grow with a sequence are those of the longest of a batch.
        lengths = {self.prompts.lengths[prompt] for prompt in batch.prompts}
        regimes = {limits.rotary_regime(self.plan.loaded.model, length) for length in lengths}
        right = self.plan.sites.branches if batch.tree else self.plan.sites.batches
        together = right and len(batch.prompts) > 1 and len(regimes) == 1
        kind = Branches if batch.tree else Batch
        if together and proof.asks(batch):
            tensors = list(self._tensors(run, batch.prompts, kind))
            alone = [(n, list(self._tensors(run, [batch.prompts[n]]))) for n in proof.sample(batch)]
            counts = [len(self.prompts.places(prompt)) for prompt in batch.prompts]
            together = proof.holds(batch, tensors, alone, counts)
            if together:
                for some in tensors:
                    self._put(run, batch.prompts, some)
        elif together and proof.is_right(batch):
            for some in self._tensors(run, batch.prompts, kind):
                self._put(run, batch.prompts, some)
        else:
            together = False
        if not together:
            for prompt in batch.prompts:
                for some in self._tensors(run, [prompt]):
                    self._put(run, [prompt], some)
        run.states.flush()
        self._add_rows(run, batch, together)

    def _tensors(
        self, run: Session, prompts: Sequence[int], kind: type[Batch] | type[Branches] = Batch
    ) -> Iterator[LayerTensors]:
        """What a pass over some prompts gives of the positions that are kept, layer by layer."""
        options = self.plan.scenario.capture
        batch = kind(
            [self.prompts.ids(prompt) for prompt in prompts],
            [self.prompts.places(prompt) for prompt in prompts],
        )
        layers: list[LayerTensors] = []
        with run.recorder.recording(layers.append, batch, self.means):
            logits = self.reader.read_batch(batch, all_logits=options.keeps("logits"))
        yield from layers
        outputs = LayerTensors(-1, {})
        if options.keeps("embeddings"):
            assert run.recorder.embeddings is not None  # a pass was made
            outputs.sites["embeddings"] = run.recorder.embeddings
        if options.keeps("logits"):
            outputs.sites["logits"] = logits
        yield outputs

    def _put(self, run: Session, prompts: Sequence[int], tensors: LayerTensors) -> None:
        pieces = [
            Piece(prompt, 0, "prefill", place, 1)
            for prompt in prompts
            for place in self.prompts.places(prompt)
        ]
        run.add_means(prompts, tensors)
        if tensors.layer in (-1, *self.plan.layers):
            run.put(pieces, replace(tensors, means={}))

    def _add_rows(self, run: Session, batch: PlannedBatch, together: bool) -> None:
        """Rows of metadata of a batch's prompts."""
        at = {"shard": batch.shard, "batch": batch.number, "padded": batch.padded}
        way = ("tree" if batch.tree else "batch") if together else "alone"
        for prompt, (messages, rendered) in zip(
            batch.prompts, self.prompts.rendered(batch.prompts), strict=True
        ):
            if rendered.ids != self.prompts.ids(prompt):
                row_id = self.prompts.dataset.ids[prompt]
                raise AlabError(
                    f"prompt.dataset: row {row_id!r} reads otherwise than before",
                    "A template gives the same each time: draw by chance in the query.",
                )
            rows = read_rows(prompt, messages, rendered, self.prompts.dataset.ids[prompt])
            rows |= self.prompts.rows(prompt, at | {"way": way})
            for table, some in rows.items():
                run.add(table, some)


def _publish(
    plan: Plan, prompts: DatasetPrompts, batches: BatchPlan, staged: StagedRun, began: datetime
) -> None:
    """Make one run of the shards."""
    warnings = list(plan.warnings)
    if not (plan.sites.batches or any(batch.tree for batch in batches)):
        message = "the model gives prompts other numbers together than alone: read one by one"
        warnings.append({"code": "batch", "message": message})
    metadata = MetadataWriter(staged, catalog.metadata_schemas(), {"warnings": warnings})
    stats = Stats()
    try:
        for number in range(len(batches.shards)):
            shard = Shard(staged, number)
            stats.add(Stats.from_json(shard.record()))
            shard.gather()
            for table in catalog.table_names():
                if table not in ("runs", "files"):
                    metadata.append(table, pq.ParquetFile(shard.metadata(table)).read())
        prompts.write_labels(staged)
        for table, rows in facts.conclude(staged, plan, stats, began).items():
            metadata.add(table, rows)
        staged.publish(metadata)
    except BaseException:
        metadata.abandon()
        raise
