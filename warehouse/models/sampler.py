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
SILENT = frozenset(
    {
        "eos_token_id",
        "pad_token_id",
        "bos_token_id",
        "decoder_start_token_id",
        "renormalize_logits",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "low_memory",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "return_legacy_cache",
        "transformers_version",
        "_from_model_config",
    }
)

#: Parts for which 1 asks for nothing; for all of them nothing, 0 and false do.
_ONE_IS_NONE = frozenset(
    {
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "length_penalty",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "typical_p",
        "guidance_scale",
    }
)


#: Parts that are about the tokens that end a reply, and ask for nothing where there are none.
_ABOUT_ENDS = frozenset({"min_length", "min_new_tokens", "exponential_decay_length_penalty"})


@dataclass(frozen=True)
class _Place:
    """Where a reply is generated.

    Attributes:
        prompt: tokens of the prompt.
        most: tokens of prompt and reply at the most.
        begin: length of the sequence at which the reply begins in earnest.
        ends: tokens that end a reply; None where there are none.
        device: where the scores are.
    """

    prompt: int
    most: int
    begin: int
    ends: Tensor | None
    device: str


#: What is applied, in the order in which `generate` does, and the public processor of transformers
#: that does it.
_PARTS: dict[str, Callable[[Any, _Place], Callable]] = {
    "sequence_bias": lambda value, at: transformers.SequenceBiasLogitsProcessor(value),
    "repetition_penalty": lambda value, at: transformers.RepetitionPenaltyLogitsProcessor(value),
    "no_repeat_ngram_size": lambda value, at: transformers.NoRepeatNGramLogitsProcessor(value),
    "bad_words_ids": lambda value, at: transformers.NoBadWordsLogitsProcessor(value, at.ends),
    "min_length": lambda value, at: transformers.MinLengthLogitsProcessor(
        value, at.ends, at.device
    ),
    "min_new_tokens": lambda value, at: transformers.MinNewTokensLengthLogitsProcessor(
        at.prompt, value, at.ends, at.device
    ),
    "forced_bos_token_id": lambda value, at: transformers.ForcedBOSTokenLogitsProcessor(value),
    "forced_eos_token_id": lambda value, at: transformers.ForcedEOSTokenLogitsProcessor(
        at.most, value, at.device
    ),
    "remove_invalid_values": lambda value, at: transformers.InfNanRemoveLogitsProcessor(),
    "exponential_decay_length_penalty": lambda value, at: (
        transformers.ExponentialDecayLengthPenalty(tuple(value), at.ends, at.prompt)
    ),
    "suppress_tokens": lambda value, at: transformers.SuppressTokensLogitsProcessor(
        value, at.device
    ),
    "begin_suppress_tokens": lambda value, at: transformers.SuppressTokensAtBeginLogitsProcessor(
        value, at.begin, at.device
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
            except (
                Exception
            ) as error:  # whatever transformers objects to, such as an id beyond the vocabulary
                raise AlabError(
                    f"what the model's generation_config asks for cannot be done: {type(process).__name__}: "
                    f"{first_line(error)}",
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
            scores = scores.masked_fill(scores < floor, -torch.inf)
        probabilities = scores.softmax(-1)
        if options.top_p is not None:
            ordered, order = probabilities.sort(descending=True)
            before = ordered.cumsum(-1) - ordered
            probabilities[order[before >= options.top_p]] = 0.0
        return probabilities / probabilities.sum()


def processors(model: Any, prompt: int, new: int, eos: set[int]) -> list[Callable]:
    """The processors that a model's `generation_config` asks for, in the order in which `generate` applies them.

    Args:
        model: a causal language model of transformers.
        prompt: tokens of the prompt.
        new: tokens to generate at the most.
        eos: tokens that end a reply.

    Raises:
        AlabError: transformers refuses what the config says.
    """
    parts = asked(model)
    ends = torch.tensor(sorted(eos), device=device_of(model)) if eos else None
    begin = prompt if prompt > 1 or "forced_bos_token_id" not in parts else prompt + 1
    at = _Place(prompt, prompt + new, begin, ends, str(device_of(model)))
    made = []
    for name, make in _PARTS.items():
        if name not in parts or (ends is None and name in _ABOUT_ENDS):
            continue
        if name == "min_length" and "min_new_tokens" in parts:
            continue  # which takes its place
        try:
            made.append(make(parts[name], at))
        except Exception as error:  # whatever transformers objects to
            raise AlabError(
                f"the model's generation_config has {name}: {parts[name]!r}, which transformers refuses: "
                f"{first_line(error)}",
                "Correct the model's generation_config.json.",
            ) from error
    return made


def asked(model: Any) -> dict[str, Any]:
    """What a model's `generation_config` asks for in choosing tokens, but for what is the scenario's."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return {}
    usual = transformers.GenerationConfig().to_dict()
    said = config.to_dict().items()
    return {
        name: getattr(config, name, value)
        for name, value in said
        if name not in SCENARIOS | SILENT
        and value != usual.get(name)
        and not _asks_nothing(name, value)
    }


def notes(model: Any) -> list[tuple[str, str]]:
    """What the reader of a run should know of the model's `generation_config`, as (code, sentence)."""
    parts = asked(model)
    done, left = (
        ", ".join(
            f"{name}: {value}" for name, value in parts.items() if (name in _PARTS) == applied
        )
        for applied in (True, False)
    )
    found = []
    if done:
        found.append(
            (
                "generation_config",
                f"tokens were chosen as the model's generation_config asks ({done}); logits and probabilities are raw",
            )
        )
    if left:
        found.append(
            (
                "generation_config_ignored",
                f"the model's generation_config asks for what alab does not do: {left}",
            )
        )
    return found


def _asks_nothing(name: str, value: Any) -> bool:
    if name.startswith("forced_"):
        return value is None
    return not value or (name in _ONE_IS_NONE and value == 1)
