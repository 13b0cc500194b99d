"""Captures a model that is loaded already: a conversation, or whatever passes the caller makes."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from warehouse import scenario
from warehouse.capture import state_tokens
from warehouse.capture.caller import check_mask, places_of_logits, weights_mark
from warehouse.capture.conversation import capture_one
from warehouse.capture.hooks import LayerTensors, Recorder
from warehouse.capture.pieces import Piece
from warehouse.capture.plan import make_plan
from warehouse.capture.prompt_rows import recorded_prompt_row, recorded_token_rows
from warehouse.capture.session import Session, kind, session
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.models import limits
from warehouse.models.fingerprint import fingerprint
from warehouse.models.loading import Loaded
from warehouse.models.offload import device_of
from warehouse.models.probe import unwrapped
from warehouse.models.refusals import check_mode
from warehouse.models.sites import discover
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
    request, loaded = _request(
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
        return capture_one(request, loaded, discover(model), Lake(warehouse), force=force)
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
    """Keep every forward pass that is made inside as one run.

    The passes are those of `model.generate`, or of a loop of the caller's own.
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

    >>> with recording(model, tokenizer, warehouse=folder, name="mine") as passes:
    ...     _ = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, min_new_tokens=4)
    >>> lab.sql("SELECT step, kind, seq_len FROM steps WHERE run_id = $run ORDER BY step",
    ...         run=passes.run_id).fetchall()
    [(0, 'prefill', 3), (1, 'decode', 4), (2, 'decode', 5), (3, 'decode', 6)]
    """
    check_kind(model)
    check_mode(model)
    prompt = {"messages": [{"role": "user", "content": ""}]}
    request, loaded = _request(model, tokenizer, name, capture or {}, prompt=prompt)
    request = request.model_copy(update={"prompt": []})  # the passes come from the caller
    plan = make_plan(request, loaded, discover(model, sharing=False))
    _ = loaded.weights_hash  # of the model as it is now: the block may change it
    with session(plan, Lake(warehouse)) as run:
        passes = Recording(run)
        hooks = _hooks(unwrapped(model), passes, run.recorder)
        with run.recorder.recording(passes.on_layer), hooks:
            yield passes
        passes.finish()


class Recording:
    """The passes that are made inside `recording`.

    Attributes:
        run_id: id of the run that they become.
    """

    def __init__(self, run: Session):
        self.run_id = run.run_id
        self._run, self._options = run, run.plan.scenario.capture
        self._model, self._chat = run.plan.loaded.model, run.chat
        self._weights = weights_mark(self._model)
        self._changed = False  # whether the model was seen to be another than when it began
        self._passes = 0
        self._prompt_id = -1
        self._tokens: list[dict] = []  # of the prompt being read, rows of `tokens`
        self._step_row: dict[str, Any] | None = None  # of the pass before, until its choice is read
        self._cache: weakref.ref | None = None  # what that pass left
        self._step = self._position = 0
        self._inside = False  # whether a pass is under way
        self._ends: list[LayerTensors] = []  # its last token's states
        self._unfinished: set[int] = set()  # steps of the prompt that ended in an error

    def __repr__(self) -> str:
        return f"Recording({self.run_id!r}), {self._passes} passes"

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
        left = self._cache() if self._cache is not None else None
        if past and (past != len(self._tokens) or left is not cache):
            raise AlabError(
                f"a pass continues a cache of {past} tokens that the pass before it did not leave",
                "Begin inside `recording`, and read one sequence at a time.",
            )
        self._look_at_end()
        self._look_at_weights()
        self._begin(ids[0].tolist(), past)

    def _begin(self, ids: list[int], past: int) -> None:
        """The next step, or without a cache the next prompt, is about to read some tokens."""
        if past:
            self._end_step(ids[0] if len(ids) == 1 else None)
            self._step += 1
        else:
            self._end_prompt()
            self._prompt_id, self._step = self._prompt_id + 1, 0
        self._inside, self._ends, self._position = True, [], past
        self._tokens += recorded_token_rows(self._chat, self._prompt_id, self._step, past, ids)

    def on_layer(self, tensors: LayerTensors) -> None:
        """Called as each layer ends."""
        if not self._inside:
            raise AlabError(
                "a part of the model was called by itself", "Call the model that is being recorded."
            )
        attention = None if tensors.attention is None else self._own(tensors.attention.detach())
        if attention is not None and attention.shape[-1] > len(self._tokens):
            keys = f"{attention.shape[-1]} keys for a sequence of {len(self._tokens)} tokens"
            raise AlabError(
                f"a static cache: attention has {keys}",
                "Use the dynamic cache, transformers' default.",
            )
        sites = {site: self._own(tensor.detach()) for site, tensor in tensors.sites.items()}
        if self._options.states:  # copies: views would keep the whole pass
            ends = {site: sites[site][-1:].clone() for site in STATE_SITES if site in sites}
            self._ends.append(LayerTensors(tensors.layer, ends))
        self._put(LayerTensors(tensors.layer, sites, attention), self._position)

    def after(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Called after each forward pass, with what it returns."""
        logits = (output.logits if hasattr(output, "logits") else output[0])[0].detach()
        self._check_ids()
        values = output.values() if hasattr(output, "values") else output
        parts = [limits.cache_in(kwargs), *values]
        cache = next((part for part in parts if hasattr(part, "get_seq_length")), None)
        self._cache = None if cache is None else weakref.ref(cache)
        count = len(self._tokens) - self._position
        places = places_of_logits(kwargs, len(logits), count)
        last = logits[-1] if places[-1] == count - 1 else None
        self._step_row = self._run.step_row(self._prompt_id, self._step, len(self._tokens), last)
        self._put_outputs(logits, places)
        for tensors in self._ends:
            self._run.add_states(self._prompt_id, self._step, tensors)
        self._passes += 1
        self._inside = False

    def finish(self) -> None:
        """Say what the passes came to; for when no more are made.

        Raises:
            AlabError: none was.
        """
        if self._prompt_id < 0:
            raise AlabError(
                "no forward pass was made inside `recording`", "Call the model in the block."
            )
        self._compare_weights()
        self._look_at_end()
        self._end_prompt()

    def _end_step(self, choice: int | None = None) -> None:
        """Write the row of the pass before, whose choice is known from the one that reads it."""
        if self._step_row is not None:
            if choice is not None:
                self._step_row["generated_token_id"] = choice
                self._step_row["generated_token"] = self._chat.token_text(choice)
            self._run.add("steps", [self._step_row])
            self._step_row = None

    def _end_prompt(self) -> None:
        """Write the rows and the states of the prompt that was read."""
        self._end_step()
        self._run.states.flush()
        tokens, self._tokens = self._tokens, []
        unfinished, self._unfinished = self._unfinished, set()
        if tokens:
            self._run.add("prompts", [recorded_prompt_row(self._chat, tokens)])
            self._run.add("tokens", tokens)
        tokens = [row for row in tokens if row["step"] not in unfinished]
        if self._options.states and tokens:
            self._run.add("state_tokens", state_tokens.recorded_rows(self._prompt_id, tokens))

    def _warn(self, code: str, message: str, **where: int) -> None:
        self._run.warnings.append({**where, "code": code, "message": message})

    def _look_at_end(self) -> None:
        """Say of a pass that an exception ended, and that the caller caught: it is not whole."""
        if self._inside:
            self._unfinished.add(self._step)
            message = (
                f"step {self._step} of prompt {self._prompt_id} ended in an error: "
                "it has rows of the layers that ran, no logits and no state"
            )
            self._warn("unfinished_pass", message, prompt_id=self._prompt_id)
            self._inside = False

    def _look_at_weights(self) -> None:
        """Say once when the model is another than at first: trained, merged, another adapter."""
        if not self._changed and weights_mark(self._model) != self._weights:
            self._changed = True
            when = f"before pass {self._passes}"
            self._warn("model_changed", f"the model's weights or adapters changed {when}")

    def _compare_weights(self) -> None:
        """Say where the weights are not those of the fingerprint, though no change was seen."""
        if not self._changed and fingerprint(self._model) != self._run.plan.loaded.weights_hash:
            when = "during the recording: the last ones are not those of weights_hash"
            self._warn("model_changed", f"the model's weights changed {when}")

    def _check_ids(self) -> None:
        """Make sure that the model read the tokens that it was called with."""
        ids = self._run.recorder.ids
        given = [row["token_id"] for row in self._tokens[self._position :]]
        if not isinstance(ids, Tensor) or ids.flatten().tolist() != given:
            raise AlabError(
                "a hook changed the tokens between the model and its embedding",
                "Give it those it reads.",
            )

    def _put_outputs(self, logits: Tensor, places: list[int]) -> None:
        """Embeddings of all tokens of the pass, and the logits of those at `places`."""
        keeps = self._options.keeps
        embeddings = self._run.recorder.embeddings if keeps("embeddings") else None
        embeddings = None if embeddings is None else self._own(embeddings.detach())
        logits = logits.clone()  # the caller may change what it was given
        rows = dict(zip(places, range(len(places)), strict=True)) if keeps("logits") else {}
        count = len(self._tokens) - self._position
        for has_logits, group in groupby(range(count), key=lambda place: place in rows):
            some = list(group)
            part = {} if embeddings is None else {"embeddings": embeddings[some[0] : some[-1] + 1]}
            if has_logits:
                part["logits"] = logits[[rows[place] for place in some]]
            self._put(LayerTensors(-1, part), self._position + some[0])

    def _own(self, tensor: Tensor) -> Tensor:
        """A tensor that the caller, who may have it too, cannot change before it is written.

        A prompt's is rounded at once, and so copied, where it is not in the stored precision
        already.
        """
        stored = str(tensor.dtype) == f"torch.{self._options.store_dtype}"
        return tensor.clone() if self._step or stored else tensor

    def _put(self, tensors: LayerTensors, position: int) -> None:
        piece = Piece(self._prompt_id, self._step, kind(self._step), position, tensors.count)
        self._run.put([piece], tensors)


@contextmanager
def _hooks(model: Any, passes: Recording, recorder: Recorder) -> Iterator[None]:
    before = model.register_forward_pre_hook(passes.before, with_kwargs=True)
    recorder.behind(model, model.register_forward_hook(passes.after, with_kwargs=True))
    try:
        yield
    finally:
        before.remove()


def _request(
    model: Any, tokenizer: Any, name: str, capture: dict, **more: Any
) -> tuple[scenario.Scenario, Loaded]:
    """What a scenario file would say of a loaded model."""
    check_kind(model)
    if not callable(tokenizer):
        raise AlabError(
            f"the tokenizer is {tokenizer!r:.80}; the texts of tokens need the model's own",
            "Give it: AutoTokenizer.from_pretrained(…)",
        )
    loaded = as_loaded(model, tokenizer)
    request = scenario.parse(
        {
            "name": name,
            "model": {"id": loaded.model_id, "dtype": loaded.dtype, "device": loaded.device},
            "capture": {"attention_weights": uses_eager(model)} | capture,
            **more,
        },
        "record",
    )
    return request, loaded


def as_loaded(model: Any, tokenizer: Any) -> Loaded:
    """A model that the caller has loaded, as if a scenario had named it."""
    dtype = str(model.dtype).removeprefix("torch.")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return Loaded(model, tokenizer, name, dtype, device_of(model).type)


def uses_eager(model: Any) -> bool:
    """Whether a model computes attention in the one way that shows its weights."""
    return getattr(model.config.get_text_config(), "_attn_implementation", None) == "eager"
