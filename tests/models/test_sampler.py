"""The choice of the next token: as the scenario says, and as the model's generation_config says on top."""

import copy

import pytest
import tiny
import torch
from captures import make_scenario, rows, run
from transformers import GenerationConfig

from warehouse import scenario
from warehouse.capture import conversation as capture
from warehouse.errors import AlabError
from warehouse.models import loading as models
from warehouse.models import sampler, sites
from warehouse.models.sampler import Sampler

IDS = [7, 30, 31, 30, 31, 44, 45, 30]


def test_sampling():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])

    def probabilities(**options):
        return (
            Sampler(scenario.Generation(do_sample=True, **options), 0)
            .probabilities(logits)
            .tolist()
        )

    assert probabilities() == pytest.approx(logits.softmax(-1).tolist())
    assert probabilities(temperature=0.5) == pytest.approx((logits * 2).softmax(-1).tolist())
    assert probabilities(top_k=2)[2:] == [0, 0]
    # 0.64 does not reach 0.7: the token that crosses the threshold is kept.
    assert [p > 0 for p in probabilities(top_p=0.7)] == [True, True, False, False]
    assert [p > 0 for p in probabilities(top_p=0.6)] == [True, False, False, False]
    greedy = Sampler(scenario.Generation(do_sample=True, temperature=0), 0)
    assert {greedy.choose(logits) for _ in range(5)} == {0}
    draws = [Sampler(scenario.Generation(do_sample=True), 7) for _ in range(2)]
    assert [draws[0].choose(logits) for _ in range(20)] == [
        draws[1].choose(logits) for _ in range(20)
    ]


def model_with(eos: int | None = 2, **parts):
    """A tiny llama of its own whose generation_config asks for something."""
    model = copy.deepcopy(tiny.model_of("llama"))
    model.config.eos_token_id = eos
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=0, bos_token_id=1)
    for name, value in parts.items():
        setattr(model.generation_config, name, value)
    return model


def chosen(model, ids: list[int], new: int, eos: set[int]) -> list[int]:
    """What a Sampler chooses, read from scratch at every step."""
    choose = Sampler(
        scenario.Generation(max_new_tokens=new), 0, sampler.processors(model, len(ids), new, eos)
    ).choose
    sequence = list(ids)
    with torch.no_grad():
        while len(sequence) < len(ids) + new:
            sequence.append(choose(model(torch.tensor([sequence])).logits[0, -1], sequence))
            if sequence[-1] in eos:
                break
    return sequence[len(ids) :]


def generated(model, ids: list[int], new: int) -> list[int]:
    with torch.no_grad():
        return model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)[
            0, len(ids) :
        ].tolist()


def greedy(count: int) -> list[int]:
    return generated(model_with(eos=None), IDS, count)


FIRST = greedy(8)
PARTS = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 0.3},
    {"suppress_tokens": [FIRST[0], FIRST[1]]},
    {"begin_suppress_tokens": [FIRST[0]]},
    {"bad_words_ids": [[FIRST[0]], [FIRST[1], FIRST[2]]]},
    {"sequence_bias": [[[FIRST[3]], 60.0], [[FIRST[0]], -60.0]]},
    {"sequence_bias": {(FIRST[3],): 60.0}},
    {"forced_eos_token_id": 2},
    {"forced_bos_token_id": 9},
    {"min_length": len(IDS) + 4, "eos_token_id": FIRST[1]},
    {"min_new_tokens": 5, "eos_token_id": [FIRST[1], FIRST[2]]},
    {"min_new_tokens": 2, "min_length": len(IDS) + 6, "eos_token_id": FIRST[1]},
    {"exponential_decay_length_penalty": [2, 3.0]},
    {"remove_invalid_values": True},
    {"repetition_penalty": 1.7, "suppress_tokens": [FIRST[0]], "no_repeat_ngram_size": 2, "forced_eos_token_id": 2,
     "begin_suppress_tokens": [FIRST[1]], "bad_words_ids": [[FIRST[2]]], "min_new_tokens": 3},
]  # fmt: skip


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(parts))
@pytest.mark.parametrize("ids", [IDS, [5]], ids=["prompt", "one token"])
def test_tokens_are_those_of_generate(parts, ids):
    model = model_with(**parts)
    eos = model.generation_config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos}
    assert chosen(model, ids, 8, ends) == generated(model, ids, 8)


def test_these_parts_change_something():
    """Else the test above would show nothing."""
    alike = [parts for parts in PARTS if generated(model_with(**parts), IDS, 8) == generated(
        model_with(eos=parts.get("eos_token_id", 2)), IDS, 8)]  # fmt: skip
    assert alike == [{"forced_bos_token_id": 9}, {"remove_invalid_values": True}]
    assert generated(model_with(forced_bos_token_id=9), [5], 8)[0] == 9


def test_a_capture_does_what_the_config_asks_and_says_so(lake):
    """Raw logits, chosen tokens; two runs of one model alike."""
    model = model_with(
        eos=None, repetition_penalty=5.0, min_p=0.1, temperature=0.3, top_k=7, max_length=2048
    )
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.eos_token = None
    request = make_scenario(generation={"max_new_tokens": 6})
    ids = tokenizer.apply_chat_template(
        request.prompt[0].turns, add_generation_prompt=True, return_dict=False
    )
    run_id = capture.capture_one(
        request,
        models.Loaded(model, tokenizer, "tiny", "float32", "cpu"),
        sites.discover(model),
        lake,
    )
    steps = rows(
        lake,
        "select generated_token_id, argmax_token_id from steps where run_id = ? order by step",
        run_id,
    )
    assert [token for token, _ in steps] == generated(model, ids, 6)
    assert any(token != best for token, best in steps)
    raw = rows(lake, "select position, logits from outputs_of(?) order by 1", run_id)[
        len(ids) - 1 :
    ]
    assert [int(torch.tensor(logits).argmax()) for _, logits in raw] == [best for _, best in steps]
    told = dict(rows(lake, "select code, message from warnings where code like 'generation%'"))
    assert "repetition_penalty: 5.0" in told["generation_config"]
    assert told["generation_config_ignored"].endswith("does not do: min_p: 0.1")


#: One value of each part of a generation_config that asks for something.
ASKING = {
    "min_p": 0.1, "typical_p": 0.5, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "top_h": 0.4, "penalty_alpha": 0.6,
    "num_beams": 4, "num_beam_groups": 2, "num_return_sequences": 2, "guidance_scale": 1.5, "dola_layers": "low",
    "diversity_penalty": 0.5, "length_penalty": 2.0, "early_stopping": True, "encoder_repetition_penalty": 2.0,
    "encoder_no_repeat_ngram_size": 2, "stop_strings": ["."], "max_time": 3.0, "token_healing": True, "constraints": [1],
    "force_words_ids": [[3]], "prompt_lookup_num_tokens": 3, "watermarking_config": {"bias": 2.0},
    "something_of_its_own": 7,
}  # fmt: skip


@pytest.mark.parametrize("name", ASKING)
def test_what_is_not_done_is_said(name):
    ((code, sentence),) = sampler.notes(model_with(**{name: ASKING[name]}))
    assert code == "generation_config_ignored"
    assert name in sentence


def test_nothing_is_ignored_silently():
    """Every part that transformers knows is applied, the scenario's, without a say, or named."""
    for name in GenerationConfig().to_dict():
        model = model_with()
        setattr(model.generation_config, name, 3 if name != "watermarking_config" else None)
        said = name in str(sampler.notes(model))
        assert said or name in sampler.SCENARIOS | sampler.SILENT | {"watermarking_config"}


def test_what_asks_for_nothing_is_not_mentioned():
    quiet = {"repetition_penalty": 1.0, "num_beams": 1, "min_length": 0, "no_repeat_ngram_size": 0, "typical_p": 1.0,
             "guidance_scale": 1.0, "length_penalty": 1.0, "do_sample": True, "temperature": 0.6, "top_p": 0.9}  # fmt: skip
    model = model_with(**quiet)
    assert sampler.notes(model) == []
    assert sampler.processors(model, 8, 8, {2}) == []
    model.generation_config = None
    assert sampler.notes(model) == []


def test_a_config_that_transformers_refuses(lake, llama):
    config = llama[0].model.generation_config
    config.repetition_penalty = -1.0
    try:
        with pytest.raises(
            AlabError,
            match=r"generation_config has repetition_penalty: -1.0, which transformers refuses",
        ):
            run(lake, llama)
    finally:
        config.repetition_penalty = None
    assert not lake.root.exists()
