"""Chooses the next token, as the scenario and the model's own `generation_config` ask for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from warehouse import scenario
from warehouse.errors import AlabError, first_line
from warehouse.models.offload import device_of

#: What of a `generation_config` the scenario says instead, by its own defaults where it says
#: nothing.
SCENARIOS = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "max_new_tokens", "max_length"}
)

#: What of it has no say in which token is chosen: ids that are used elsewhere, and how `generate`
#: goes about it.
SILENT = frozenset({
    "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id",
    "renormalize_logits", "use_cache", "cache_implementation", "cache_config", "max_cache_len",
    "low_memory", "prefill_chunk_size", "compile_config", "disable_compile", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "return_legacy_cache", "transformers_version", "_from_model_config",
})  # fmt: skip

#: Parts for which 1 asks for nothing; for all of them nothing, 0 and false do.
_ONE_IS_NONE = frozenset({
    "num_beams", "num_beam_groups", "num_return_sequences", "length_penalty",
    "repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale",
})  # fmt: skip

#: Parts that are about the tokens that end a reply, and ask for nothing where there are none.
_ABOUT_ENDS = frozenset({"min_length", "min_new_tokens", "exponential_decay_length_penalty"})


@dataclass(frozen=True)
class _Reply:
    """What bounds a reply.

    Attributes:
        prompt: tokens of the prompt.
        most: tokens of prompt and reply at the most.
        begin: length of the sequence at which the reply begins in earnest.
        ends: tokens that end a reply; empty where there are none.
        device: where the scores are.
    """

    prompt: int
    most: int
    begin: int
    ends: Tensor
    device: str


#: What is applied, in the order in which `generate` does, and the public processor of transformers
#: that does it.
_PARTS: dict[str, Callable[[Any, _Reply], Callable]] = {
    "sequence_bias": lambda value, _: transformers.SequenceBiasLogitsProcessor(value),
    "repetition_penalty": lambda value, _: transformers.RepetitionPenaltyLogitsProcessor(value),
    "no_repeat_ngram_size": lambda value, _: transformers.NoRepeatNGramLogitsProcessor(value),
    "bad_words_ids": lambda value, reply: transformers.NoBadWordsLogitsProcessor(
        value, reply.ends if len(reply.ends) else None
    ),
    "min_length": lambda value, reply: transformers.MinLengthLogitsProcessor(
        value, reply.ends, reply.device
    ),
    "min_new_tokens": lambda value, reply: transformers.MinNewTokensLengthLogitsProcessor(
        reply.prompt, value, reply.ends, reply.device
    ),
    "forced_bos_token_id": lambda value, _: transformers.ForcedBOSTokenLogitsProcessor(value),
    "forced_eos_token_id": lambda value, reply: transformers.ForcedEOSTokenLogitsProcessor(
        reply.most, value, reply.device
    ),
    "remove_invalid_values": lambda *_: transformers.InfNanRemoveLogitsProcessor(),
    "exponential_decay_length_penalty": lambda value, reply: (
        transformers.ExponentialDecayLengthPenalty(tuple(value), reply.ends, reply.prompt)
    ),
    "suppress_tokens": lambda value, reply: transformers.SuppressTokensLogitsProcessor(
        value, reply.device
    ),
    "begin_suppress_tokens": lambda value, reply: transformers.SuppressTokensAtBeginLogitsProcessor(
        value, reply.begin, reply.device
    ),
}


class Sampler:
    """Chooses the next token: the most likely one, or a draw from a generator on the CPU.

    Args:
        options: the scenario's `generation`.
        seed: seed of the draw; equal seeds give equal tokens on equal scores, whatever the device.
        processors: what changes the scores beforehand, as `processors` gives it.
    """

    def __init__(
        self, options: scenario.Generation, seed: int, processors: Sequence[Callable] = ()
    ):
        self._options = options
        self._generator = torch.Generator().manual_seed(seed)
        self._processors = processors

    def choose(self, logits: Tensor, ids: Sequence[int] = ()) -> int:
        """The next token for (vocabulary,) logits, after the tokens `ids`."""
        scores = self.scores(logits, ids)
        if self._options.greedy:
            return int(scores.argmax())
        probabilities = self.probabilities(scores)
        if not probabilities.isfinite().all():
            raise AlabError(
                "no token can be drawn: the model's logits are not finite", "Use do_sample: false."
            )
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def scores(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        """Logits as the processors change them; the logits themselves stay as they are."""
        if not self._processors:
            return logits
        read = torch.tensor([list(ids)], device=logits.device)
        scores = logits.to(torch.float32, copy=True)[None]
        for process in self._processors:
            try:
                scores = process(read, scores)
            except Exception as error:  # of transformers, such as an id beyond the vocabulary
                raise AlabError(
                    "what the model's generation_config asks for cannot be done: "
                    f"{type(process).__name__}: {first_line(error)}",
                    "Correct the model's generation_config.json.",
                ) from error
        return scores[0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from: temperature, then top_k, then top_p.

        `top_p` keeps the most likely tokens up to and including the one that crosses the threshold.
        """
        options = self._options
        scores = logits.float().cpu() / options.temperature
        if options.top_k is not None:
            floor = scores.topk(min(options.top_k, len(scores))).values[-1]
            scores[scores < floor] = -torch.inf
        probabilities = scores.softmax(-1)
        if options.top_p is not None:
            ordered, order = probabilities.sort(descending=True)
            before = ordered.cumsum(-1) - ordered
            probabilities[order[before >= options.top_p]] = 0.0
        return probabilities / probabilities.sum()


def processors(model: Any, prompt: int, new: int, eos: set[int]) -> list[Callable]:
    """The processors that a `generation_config` asks for, in the order of `generate`.

    Args:
        model: a causal language model of transformers.
        prompt: tokens of the prompt.
        new: tokens to generate at the most.
        eos: tokens that end a reply.
    """
    parts, device = requests(model), device_of(model)
    ends = torch.tensor(sorted(eos), dtype=torch.int64, device=device)
    begin = prompt if prompt > 1 or "forced_bos_token_id" not in parts else prompt + 1
    reply = _Reply(prompt, prompt + new, begin, ends, str(device))
    if "min_new_tokens" in parts:
        parts.pop("min_length", None)  # whose place it takes
    chain: list[Callable] = []
    for name, make in _PARTS.items():
        if name not in parts or (not eos and name in _ABOUT_ENDS):
            continue
        try:
            chain.append(make(parts[name], reply))
        except Exception as error:  # whatever transformers objects to
            raise AlabError(
                f"the model's generation_config has {name}: {parts[name]!r}, which transformers "
                f"refuses: {first_line(error)}",
                "Correct the model's generation_config.json.",
            ) from error
    return chain


def requests(model: Any) -> dict[str, Any]:
    """What a `generation_config` asks for in choosing tokens, but for what the scenario says."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    usual = transformers.GenerationConfig().to_dict()
    return {
        name: getattr(config, name, value)
        for name, value in config.to_dict().items()
        if name not in SCENARIOS | SILENT
        and value != usual.get(name)
        and not _asks_nothing(name, value)
    }


def notes(model: Any) -> list[tuple[str, str]]:
    """What the reader of a run should know of a `generation_config`, as (code, sentence)."""
    lists: dict[bool, list[str]] = {True: [], False: []}
    for name, value in requests(model).items():
        lists[name in _PARTS].append(f"{name}: {value}")
    sentences = {
        "generation_config": "tokens were chosen as the model's generation_config asks "
        f"({', '.join(lists[True])}); logits and probabilities are raw",
        "generation_config_ignored": "the model's generation_config asks for what alab does not "
        f"do: {', '.join(lists[False])}",
    }
    return [note for note, parts in zip(sentences.items(), lists.values(), strict=True) if parts]


def _asks_nothing(name: str, value: Any) -> bool:
    if name.startswith("forced_"):
        return value is None
    return not value or (name in _ONE_IS_NONE and value == 1)
