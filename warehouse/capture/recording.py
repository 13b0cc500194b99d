"""Captures a model that is loaded already, from Python: a conversation, or whatever passes the caller makes."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from warehouse import scenario
from warehouse.capture import state_tokens
from warehouse.capture.caller import check_mask, places_of_logits, weights_mark
from warehouse.capture.conversation import capture_one, publishing, site_widths
from warehouse.capture.facts import conclude, step_rows
from warehouse.capture.hooks import LayerTensors, Recorder
from warehouse.capture.pieces import Piece
from warehouse.capture.plan import Plan, make_plan
from warehouse.capture.rowgroups import Rows
from warehouse.capture.states import StateFile
from warehouse.capture.transfer import Transfer
from warehouse.capture.writer import TensorWriter
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.models import limits, sites
from warehouse.models import loading as models
from warehouse.models.chat import Chat
from warehouse.models.fingerprint import fingerprint
from warehouse.models.offload import device_of
from warehouse.models.probe import unwrapped
from warehouse.models.refusals import check_mode
from warehouse.models.stack import check_kind
from warehouse.vocabulary import STATE_SITES


def record(
    model: Any,
    tokenizer: Any,
    messages: Sequence[dict[str, str]],
    *,
    warehouse: Path | str = "lab",
    name: str = "recorded",
    generation: dict | None = None,
    capture: dict | None = None,
    reference_states: Sequence[dict] = (),
    force: bool = False,
    template: dict | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Run a conversation through a loaded model and keep every tensor.

    Args:
        model: a causal language model of transformers, on its device; used in evaluation mode.
        tokenizer: its tokenizer.
        messages: the conversation, each message with `role` and `content`.
        warehouse: directory of the warehouse.
        name: what the run's id begins with.
        generation: as in a scenario, such as `{"max_new_tokens": 20}`.
        capture: as in a scenario, such as `{"logits": False}`; attention weights are kept where the
            model uses eager attention, unless this says otherwise.
        reference_states: as in a scenario, each with `label` and `messages`.
        force: run although the disk looks too small.
        template: options for the chat template, such as `{"enable_thinking": False}`.
        add_generation_prompt: whether the header of the next reply is written.

    Returns:
        The run's id.

    Raises:
        AlabError: the conversation does not fit the model, or an option is not one of a scenario's.

    >>> lab.runs().fetchall()
    []
    >>> run = record(model, tokenizer, [{"role": "user", "content": "Hi"}], warehouse=folder,
    ...              generation={"max_new_tokens": 3})
    >>> lab.tensor(run, "hidden_out", layer=0, step=2).shape
    (1, 32)
    """
    wanted, loaded = _request(
        model,
        tokenizer,
        name,
        capture or {},
        generation=generation or {},
        reference_states=list(reference_states),
        prompt={
            "messages": list(messages),
            "template": template or {},
            "add_generation_prompt": add_generation_prompt,
        },
    )
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return capture_one(wanted, loaded, sites.discover(model), Lake(warehouse), force=force)
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def recording(
    model: Any,
    tokenizer: Any,
    *,
    warehouse: Path | str = "lab",
    name: str = "recorded",
    capture: dict | None = None,
) -> Iterator["Recording"]:
    """Keep every forward pass that is made inside, by `model.generate` or a loop of the caller's own, as one run.

    A pass without a key-value cache, or with an empty one, begins a prompt: its step 0. A pass that
    continues the cache is the next step, and counts as the reply. The model computes what it would
    compute without alab; where it gives logits for some positions only, as `generate` does for the
    prompt, those are kept. There are no messages, snapshots or references. The token chosen in a
    step is known from the pass that reads it; the last step has none.

    Args:
        model: a causal language model of transformers, on its device, in evaluation mode.
        tokenizer: its tokenizer, for the text of the tokens.
        warehouse: directory of the warehouse.
        name: what the run's id begins with.
        capture: as in a scenario, such as `{"logits": False}`; attention weights are kept where the
            model uses eager attention, unless this says otherwise.

    Yields:
        The recording; its `run_id` can be asked for in SQL once the block has ended. After an
        exception, or where no pass was made, nothing is kept.

    Raises:
        AlabError: the model is in training mode, an option is not one of a scenario's, or a pass
            has a batch, padding, embeddings in place of ids, or a cache that the passes before did
            not fill.

    >>> with recording(model, tokenizer, warehouse=folder, name="mine") as kept:
    ...     _ = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    >>> lab.sql("SELECT step, kind, seq_len FROM steps WHERE run_id = $run ORDER BY step", run=kept.run_id).fetchall()
    [(0, 'prefill', 3), (1, 'decode', 4), (2, 'decode', 5), (3, 'decode', 6)]
    """
    check_kind(model)
    check_mode(model)
    wanted, loaded = _request(
        model,
        tokenizer,
        name,
        capture or {},
        prompt={"messages": [{"role": "user", "content": ""}]},
    )
    wanted = wanted.model_copy(update={"prompt": []})  # the passes come from the caller
    found = sites.discover(model, sharing=False)
    plan = make_plan(wanted, loaded, found)
    _ = loaded.weights_hash  # of the model as it is now: the block may change it
    with publishing(Lake(warehouse), name) as (staged, rows):
        kept = Recording(wanted, loaded, plan, rows, staged.run_id)
        kept.states = StateFile(staged, found.hidden_size, wanted.capture.store_dtype)
        with (
            TensorWriter(
                staged, site_widths(plan, found, wanted.capture), wanted.capture.store_dtype
            ) as kept.writer,
            Recorder(
                model,
                found,
                sites=plan.read,
                layers=plan.layers,
                attention=wanted.capture.attention_weights,
            ) as kept.recorder,
            kept.recorder.recording(kept.on_layer),
            _hooks(unwrapped(model), kept),
        ):
            yield kept
        if not kept.rows["prompts"]:
            raise AlabError(
                "no forward pass was made inside `recording`", "Call the model in the block."
            )
        kept.compare_weights(loaded.weights_hash)
        kept.finish()
        rows |= conclude(
            staged, wanted, loaded, found, plan, kept.recorder.note(kept.writer.stats), kept.created
        )
        rows["warnings"] += kept.warnings


class Recording:
    """The passes that are made inside `recording`.

    Attributes:
        run_id: id of the run that they become.
    """

    writer: TensorWriter
    recorder: Recorder
    states: StateFile

    def __init__(
        self,
        wanted: scenario.Scenario,
        loaded: models.Loaded,
        plan: Plan,
        rows: dict[str, list[dict]],
        run_id: str,
    ):
        self.run_id = run_id
        self.rows = rows
        self.created = datetime.now(UTC).replace(tzinfo=None)
        self._wanted, self._plan = wanted.capture, plan
        self._model = loaded.model
        self._chat = Chat(loaded.tokenizer)
        self._transfer = Transfer(device_of(loaded.model))
        self._ids: list[int] = []  # of the prompt being read
        self._cache: weakref.ref | None = None  # what its latest pass left
        self._step = self._position = 0
        self._inside = False  # whether a pass is under way
        self._ends: dict[int, dict[str, Tensor]] = {}  # its last token's states, by layer
        self._unfinished: set[tuple[int, int]] = (
            set()
        )  # (prompt, step) of passes that ended in an error
        self._weights = weights_mark(loaded.model)
        self.warnings: list[dict] = []

    def __repr__(self) -> str:
        return f"Recording({self.run_id!r}), {len(self.rows['steps'])} passes"

    @property
    def _prompt_id(self) -> int:
        return len(self.rows["prompts"]) - 1

    def before(self, module: Any, args: tuple, kwargs: dict) -> None:
        """Called before each forward pass: finds its place in the sequence."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or kwargs.get("inputs_embeds") is not None:
            raise AlabError(
                "a pass reads embeddings; only passes over token ids can be recorded",
                "Give input_ids.",
            )
        if ids.shape[0] != 1:
            raise AlabError(
                f"a pass has a batch of {ids.shape[0]} sequences; one can be recorded at a time",
                "Run the sequences one after the other, without beams.",
            )
        check_mode(self._model)
        cache = limits.cache_in(kwargs)
        past = int(cache.get_seq_length()) if cache is not None else 0
        check_mask(kwargs.get("attention_mask"), ids.shape[-1], past)
        if past and (past != len(self._ids) or self._cache is None or self._cache() is not cache):
            raise AlabError(
                f"a pass continues a cache of {past} tokens that the pass before it did not leave",
                "Begin inside `recording`, and read one sequence at a time.",
            )
        self._look_at_end()
        self._inside = True
        self._ends = {}
        self._look_at_weights()
        read = ids[0].tolist()
        if past:
            self._step += 1
            if len(read) == 1:
                self.rows["steps"][-1] |= {
                    "generated_token_id": read[0],
                    "generated_token": self._chat.token_text(read[0]),
                }
        else:
            self._begin()
        self._position = past
        self._ids += read
        self.rows["tokens"] += [
            {
                "prompt_id": self._prompt_id,
                "step": self._step,
                "position": past + i,
                "token_id": token,
                "token": self._chat.token_text(token),
                "is_template": False,
                "is_generated": bool(past),
            }
            for i, token in enumerate(read)
        ]

    def on_layer(self, tensors: LayerTensors) -> None:
        """Called as each layer ends."""
        if not self._inside:
            raise AlabError(
                "a part of the model was called by itself", "Call the model that is being recorded."
            )
        attention = None if tensors.attention is None else self._own(tensors.attention.detach())
        if attention is not None and attention.shape[-1] > len(self._ids):
            raise AlabError(
                f"a static cache: attention has {attention.shape[-1]} keys for a sequence of {len(self._ids)} tokens",
                "Use the dynamic cache, transformers' default.",
            )
        detached = {site: self._own(tensor.detach()) for site, tensor in tensors.sites.items()}
        if self._plan.states:  # copies: views would keep the whole pass
            self._ends[tensors.layer] = {
                s: detached[s][-1:].clone() for s in STATE_SITES if s in detached
            }
        self._put(LayerTensors(tensors.layer, detached, attention), self._position)

    def after(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Called after each forward pass, with what it returns."""
        logits = (output.logits if hasattr(output, "logits") else output[0])[0].detach()
        self._check_ids()
        parts = [
            limits.cache_in(kwargs),
            *(output.values() if hasattr(output, "values") else output),
        ]
        cache = next((part for part in parts if hasattr(part, "get_seq_length")), None)
        self._cache = None if cache is None else weakref.ref(cache)
        at = {"prompt_id": self._prompt_id, "step": self._step}
        places = places_of_logits(kwargs, len(logits), len(self._ids) - self._position)
        row: dict[str, Any] = {}
        if places[-1] == len(self._ids) - self._position - 1:
            row, top = step_rows(self._chat, logits[-1], self._wanted.top_k_probs)
            self.rows["top_tokens"] += [at | entry for entry in top]
        self.rows["steps"].append(row | at | {"kind": self._kind, "seq_len": len(self._ids)})
        self._put_outputs(logits, places)
        for layer, vectors in self._ends.items():
            if self._step:
                self.states.hold((self._prompt_id, "final", self._step, None), layer, vectors)
            else:
                self.states.add({(self._prompt_id, "initial", 0, None): -1}, layer, vectors)
        self._inside = False

    def _look_at_end(self) -> None:
        """Say of a pass that an exception ended, and that the caller caught: it is not whole, and has no state."""
        if self._inside:
            self._unfinished.add((self._prompt_id, self._step))
            where = f"step {self._step} of prompt {self._prompt_id} ended in an error"
            self.warnings.append(
                {
                    "prompt_id": self._prompt_id,
                    "code": "unfinished_pass",
                    "message": f"{where}: it has rows of the layers that ran, no logits and no state",
                }
            )
            self._inside = False

    @property
    def _changed(self) -> bool:
        return any(row["code"] == "model_changed" for row in self.warnings)

    def _look_at_weights(self) -> None:
        """Say once when the model is another than when the recording began: trained, merged, with another adapter."""
        if not self._changed and weights_mark(self._model) != self._weights:
            when = f"before pass {len(self.rows['steps'])}"
            self.warnings.append(
                {
                    "code": "model_changed",
                    "message": f"the model's weights or adapters changed {when}",
                }
            )

    def compare_weights(self, before: str) -> None:
        """Say where the weights are not those of the fingerprint, though nothing told of a change on the way."""
        if not self._changed and fingerprint(self._model) != before:
            message = "the model's weights changed during the recording: the last ones are not those of weights_hash"
            self.warnings.append({"code": "model_changed", "message": message})

    def _check_ids(self) -> None:
        """Make sure that the model read the tokens that it was called with."""
        read = self.recorder.ids
        if not isinstance(read, Tensor) or read.flatten().tolist() != self._ids[self._position :]:
            raise AlabError(
                "a hook changed the tokens between the model and its embedding",
                "Give it those it reads.",
            )

    def _put_outputs(self, logits: Tensor, places: list[int]) -> None:
        """Embeddings of all tokens of the pass, and the logits of those that have them; `places` are theirs."""
        embeddings = (
            self._own(self.recorder.embeddings.detach()) if self._wanted.hidden_states else None
        )
        logits = logits.clone()  # the caller may change what it was given
        rows = dict(zip(places, range(len(places)), strict=True)) if self._wanted.logits else {}
        count = len(self._ids) - self._position
        for has, group in groupby(range(count), key=lambda place: place in rows):
            some = list(group)
            part = {} if embeddings is None else {"embeddings": embeddings[some[0] : some[-1] + 1]}
            if has:
                part["logits"] = logits[[rows[place] for place in some]]
            self._put(LayerTensors(-1, part), self._position + some[0])

    def _own(self, tensor: Tensor) -> Tensor:
        """A tensor that the caller, who may have been given it too, does not change before it is written.

        A prompt's is rounded at once, and so copied, where it is not in the stored precision
        already.
        """
        return (
            tensor.clone()
            if self._step or str(tensor.dtype) == f"torch.{self._wanted.store_dtype}"
            else tensor
        )

    def finish(self) -> None:
        """Write the states, and say of each prompt what was read."""
        self._look_at_end()
        self.states.close()
        for prompt in self.rows["prompts"]:
            read = [row for row in self.rows["tokens"] if row["prompt_id"] == prompt["prompt_id"]]
            given, reply = (
                [row["token_id"] for row in read if row["is_generated"] == of]
                for of in (False, True)
            )
            prompt |= {
                "n_prompt_tokens": len(given),
                "n_generated": len(reply),
                "stop_reason": None,
                "prompt_text": self._chat.spelling.whole(given),
                "generated_text": self._chat.decode(reply),
            }
            read = [row for row in read if (row["prompt_id"], row["step"]) not in self._unfinished]
            if self._wanted.states and read:
                self.rows["state_tokens"] += state_tokens.recorded_rows(prompt["prompt_id"], read)

    def _begin(self) -> None:
        self.states.flush()
        self.rows["prompts"].append({"prompt_id": len(self.rows["prompts"])})
        self._ids, self._step = [], 0

    @property
    def _kind(self) -> str:
        return "decode" if self._step else "prefill"

    def _put(self, tensors: LayerTensors, position: int) -> None:
        if any(len(tensor) for tensor in tensors.sites.values()) or tensors.attention is not None:
            host, ready = self._transfer(tensors)
            layer = None if tensors.layer < 0 else tensors.layer
            counts = [len(tensor) for tensor in tensors.sites.values()]
            count = counts[0] if counts else len(self._ids) - position
            pieces = [Piece(self._prompt_id, self._step, self._kind, position, count)]
            self.writer.put(Rows(pieces, layer, host.sites, host.attention, ready))


@contextmanager
def _hooks(model: Any, kept: Recording) -> Iterator[None]:
    before = model.register_forward_pre_hook(kept.before, with_kwargs=True)
    kept.recorder.behind(model, model.register_forward_hook(kept.after, with_kwargs=True))
    try:
        yield
    finally:
        before.remove()


def _request(
    model: Any, tokenizer: Any, name: str, capture: dict, **more: Any
) -> tuple[scenario.Scenario, models.Loaded]:
    """What a scenario file would say of a loaded model."""
    check_kind(model)
    if not callable(tokenizer):
        raise AlabError(
            f"the tokenizer is {tokenizer!r:.80}; the texts of tokens need the model's own",
            "Give it: AutoTokenizer.from_pretrained(…)",
        )
    loaded = as_loaded(model, tokenizer)
    wanted = scenario.parse(
        {
            "name": name,
            "model": {"id": loaded.model_id, "dtype": loaded.dtype, "device": loaded.device},
            "capture": {"attention_weights": uses_eager(model)} | capture,
            **more,
        },
        "record",
    )
    return wanted, loaded


def as_loaded(model: Any, tokenizer: Any) -> models.Loaded:
    """A model that the caller has loaded, as if a scenario had named it."""
    dtype = str(model.dtype).removeprefix("torch.")
    return models.Loaded(
        model,
        tokenizer,
        getattr(model, "name_or_path", "") or type(model).__name__,
        dtype,
        device_of(model).type,
    )


def uses_eager(model: Any) -> bool:
    """Whether a model computes attention in the one way that shows its weights."""
    return getattr(model.config.get_text_config(), "_attn_implementation", None) == "eager"
