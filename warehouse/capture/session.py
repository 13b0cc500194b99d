"""One run while it is recorded: what conversations and a caller's own passes have in common.

plan ─→ session: stages the run, and holds
          recorder ─ tensors of a layer ─→ put ─→ Transfer ─→ TensorWriter ─→ every token
                                       └─→ add_states ─→ StateFile ─→ last tokens
          add ─ rows of prompts, tokens, steps … ─→ MetadataWriter
        and in the end concludes and publishes, or discards
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from warehouse.capture.dataset_prompts import DatasetPrompts
from warehouse.capture.facts import conclude, step_rows
from warehouse.capture.hooks import LayerTensors, Recorder
from warehouse.capture.pieces import Piece
from warehouse.capture.plan import Plan
from warehouse.capture.rowgroups import Rows
from warehouse.capture.states import Key, StateFile
from warehouse.capture.transfer import Transfer
from warehouse.capture.writer import TensorWriter
from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.staging import Shard, StagedRun
from warehouse.models.chat import Chat
from warehouse.models.offload import device_of
from warehouse.models.reader import Reader

#: Told of progress: (what is happening, passes done, passes in all); of many prompts, prompts
#: instead of passes.
Progress = Callable[[str, int, int], None]
#: Told of what programs follow: `("begun", run=…)` when a run gets its id, and of each token of a
#: reply `("token", prompt=…, step=…, text=…)`.
Watch = Callable[..., None]


@contextmanager
def session(plan: Plan, lake: Lake, progress: Progress = lambda *_: None) -> Iterator["Session"]:
    """Record a run: it is published on a clean exit, and discarded after an exception.

    Args:
        plan: what to record.
        lake: where it goes.
        progress: told where the catalog is in use.

    Yields:
        The session, its hooks registered and its files open.
    """
    lake.prepare()
    lake.sweep()
    staged = lake.stage(plan.scenario.name)
    metadata = MetadataWriter(staged, catalog.metadata_schemas(), {"warnings": plan.warnings})
    try:
        run = Session(plan, staged, metadata)
        if isinstance(plan.prompts, DatasetPrompts):
            plan.prompts.write_labels(staged)
        with run.recorder, run.tensors:
            yield run
            run.states.close()
        run.conclude(staged)
        staged.publish(metadata)
    except BaseException:
        metadata.abandon()
        staged.discard()
        raise
    catalog.Catalog(lake).add(staged.run_id, progress)


class Session:
    """Takes what the passes of a run give.

    Attributes:
        plan: what is recorded.
        run_id: id of the run.
        add: writes rows of a metadata table, without the run's id.
        chat: spells its tokens.
        recorder: the hooks on the model.
        tensors: writes every token's tensors.
        states: writes the last tokens' states.
        warnings: what the run's reader should know beside the plan's and `conclude`'s, told last.

    Args:
        plan: what to record.
        staged: where.
        metadata: takes its rows.
    """

    def __init__(self, plan: Plan, staged: StagedRun | Shard, metadata: MetadataWriter):
        options, loaded = plan.scenario.capture, plan.loaded
        self.plan, self.run_id = plan, staged.run_id
        self.chat = Chat(loaded.tokenizer)
        self.recorder = Recorder(
            loaded.model,
            plan.sites,
            sites=plan.recorded,
            layers=plan.hooked,
            attention=options.keeps("attention"),
        )
        self.tensors = TensorWriter(staged, plan.widths, options.store_dtype)
        width, by_site = plan.sites.hidden_size, plan.scenario.dataset is not None
        self.states = StateFile(staged, width, options.store_dtype, by_site)
        self.warnings: list[dict] = []
        self.add = metadata.add
        self._transfer = Transfer(device_of(loaded.model))
        self._began = datetime.now(UTC).replace(tzinfo=None)

    def put(self, pieces: list[Piece], tensors: LayerTensors) -> None:
        """Write a layer's tensors of a pass, or as layer -1 its embeddings and logits.

        Args:
            pieces: the tokens that their rows are of.
            tensors: on the model's device.
        """
        if not tensors.count:
            return
        host, ready = self._transfer(tensors)
        layer = None if tensors.layer < 0 else tensors.layer
        self.tensors.put(Rows(pieces, layer, host.sites, host.attention, ready))

    def add_means(self, prompts: Sequence[int], tensors: LayerTensors) -> None:
        """Take the means over the tokens of a dataset's prompts."""
        if tensors.means:
            means = {site: value.cpu() for site, value in tensors.means.items()}
            keys: dict[Key, int] = {(id_, "mean", 0, None): n for n, id_ in enumerate(prompts)}
            self.states.add(keys, tensors.layer, means)

    def add_states(
        self,
        prompt_id: int,
        step: int,
        tensors: LayerTensors,
        prefill: dict[Key, int] | None = None,
    ) -> None:
        """Take the states that a pass ends with.

        Args:
            prompt_id: the prompt that the pass reads.
            step: the pass.
            tensors: of one of its layers.
            prefill: where it is the first, the states that it has and which token's each is; else
                it has the initial one.
        """
        if step:
            self.states.replace((prompt_id, "final", step, None), tensors.layer, tensors.sites)
        else:
            places = prefill or {(prompt_id, "initial", 0, None): -1}
            self.states.add(places, tensors.layer, tensors.sites)

    def read_states(
        self, reader: Reader, sequences: dict[Key, list[int]], tick: Callable[[int], None]
    ) -> None:
        """Read sequences for their last tokens' states alone.

        Args:
            reader: what reads them; its cache may hold a beginning that they share.
            sequences: the tokens of each.
            tick: told how many were read.
        """
        keys = list(sequences)
        for tree in reader.as_trees(list(sequences.values())):
            # From the end: a model may compute only the last tokens in its later layers.
            places = {keys[name]: end - len(tree.tokens) for name, end in tree.ends.items()}

            def sink(tensors: LayerTensors, places: dict[Key, int] = places) -> None:
                self.states.add(places, tensors.layer, tensors.sites)

            with self.recorder.recording(sink):
                reader.read_tree(tree)
            tick(len(places))

    def step_row(
        self, prompt_id: int, step: int, seq_len: int, logits: Tensor | None
    ) -> dict[str, Any]:
        """Write what a pass held for likely, and give its row of `steps`, without the choice.

        Args:
            prompt_id: the prompt that the pass reads.
            step: the pass.
            seq_len: tokens read so far.
            logits: (vocabulary,) of its last token, where known.
        """
        at = {"prompt_id": prompt_id, "step": step}
        row: dict[str, Any] = {}
        if logits is not None:
            row, top = step_rows(self.chat, logits, self.plan.scenario.capture.top_k_probs)
            self.add("top_tokens", [at | entry for entry in top])
        return row | at | {"kind": kind(step), "seq_len": seq_len}

    def conclude(self, staged: StagedRun) -> None:
        """Write the rows about the run as a whole; for when its files are finished."""
        stats = self.recorder.note(self.tensors.stats)
        for table, rows in conclude(staged, self.plan, stats, self._began).items():
            self.add(table, rows)
        self.add("warnings", self.warnings)


def kind(step: int) -> str:
    """What a pass is called in the lake."""
    return "decode" if step else "prefill"
