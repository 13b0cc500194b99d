"""Models and passes that cannot be recorded are refused before they run; one that breaks off leaves no state."""

import copy

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import warehouse
from warehouse.catalog import check
from warehouse.errors import AlabError

IDS = torch.tensor([[5, 9, 12, 7, 30]])
CHAT = [{"role": "user", "content": "Hello"}]
FLOAT = {"store_dtype": "float32"}


def fresh(family: str = "llama") -> nn.Module:
    return copy.deepcopy(tiny.model_of(family))


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def itself(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def a_part(model: nn.Module) -> nn.Module:
    model.model.layers[1].compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [whole, itself, a_part])
def test_compiled_code_runs_without_hooks(tmp_path, compiled):
    model = compiled(fresh())
    model(IDS)
    with pytest.raises(AlabError, match=r"compiled by torch\.compile"):
        warehouse.record(model, tiny.tokenizer(), CHAT, warehouse=tmp_path)
    with (
        pytest.raises(AlabError, match=r"compiled by torch\.compile"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        model(IDS)


def test_what_a_probe_reads_is_no_pass_of_the_callers(tmp_path):
    model, tokenizer = fresh(), tiny.tokenizer()
    with warehouse.recording(model, tokenizer, warehouse=tmp_path) as kept:
        model(IDS)
        with (
            pytest.raises(AlabError, match="is being recorded already"),
            warehouse.recording(model, tokenizer, warehouse=tmp_path),
        ):
            model(IDS)
        with pytest.raises(AlabError, match="is being recorded already"):
            warehouse.record(model, tokenizer, CHAT, warehouse=tmp_path)
        model(IDS[:, :3])
    lab = warehouse.open(tmp_path)
    steps = lab.sql(
        "SELECT prompt_id, seq_len FROM steps WHERE run_id = $run ORDER BY 1", run=kept.run_id
    ).fetchall()
    assert steps == [(0, 5), (1, 3)]
    with warehouse.recording(model, tokenizer, warehouse=tmp_path):
        model(IDS)


@pytest.mark.parametrize("part", ["", "dropout"])
def test_training_mode_inside_a_recording(tmp_path, part):
    model = fresh("gpt2" if part else "llama")
    with (
        pytest.raises(AlabError, match="training mode"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        model(IDS)
        (model.transformer.drop if part else model).train()
        model(IDS)


def test_record_leaves_each_module_in_its_mode(tmp_path):
    model = fresh("gpt2").train()
    model.transformer.drop.eval()
    before = [module.training for module in model.modules()]
    warehouse.record(
        model, tiny.tokenizer(), CHAT, warehouse=tmp_path, generation={"max_new_tokens": 1}
    )
    assert [module.training for module in model.modules()] == before


SEES = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
LOWEST = torch.finfo(torch.float32).min


def added(seen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, LOWEST)


@pytest.mark.parametrize(
    "mask", [torch.ones_like(SEES), added(torch.ones_like(SEES)), added(SEES.triu(1)), SEES.triu(1)]
)
def test_a_mask_that_is_not_causal(tmp_path, mask):
    model = fresh()
    with (
        pytest.raises(AlabError, match="an attention mask of its own"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        model(IDS, attention_mask=mask)


@pytest.mark.parametrize("mask", [added(SEES), added(SEES.triu(-1))])
def test_a_mask_over_earlier_keys(tmp_path, mask):
    model = fresh()
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path, capture=FLOAT) as kept:
        model(IDS, attention_mask=mask)
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask, output_attentions=True).attentions[1][0, 2]
    rows = warehouse.open(tmp_path).sql(
        "SELECT weights FROM attention WHERE run_id = $run AND layer = 1 AND head = 2 ORDER BY position", run=kept.run_id
    ).fetchall()  # fmt: skip
    for position, (weights,) in enumerate(rows):
        np.testing.assert_allclose(weights, expected[position, : position + 1], atol=1e-6)


@pytest.mark.parametrize("step", [0, 1])
def test_a_pass_that_breaks_off_has_no_state(tmp_path, step):
    model, broken = fresh(), []

    def breaks(module, args, output):
        if broken:
            raise ValueError("the caller's own")

    model.model.layers[2].register_forward_hook(breaks)
    with (
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path, capture=FLOAT) as kept,
        torch.no_grad(),
    ):
        cache = model(IDS, use_cache=True).past_key_values if step else None
        broken.append(True)
        with pytest.raises(ValueError, match="own"):
            model(IDS[:, :1], past_key_values=cache)
        broken.clear()
        model(IDS)
    lab = warehouse.open(tmp_path)
    ask = lambda sql: lab.sql(sql, run=kept.run_id).fetchall()  # noqa: E731
    warnings = dict(ask("SELECT code, message FROM warnings WHERE run_id = $run"))
    assert f"step {step} of prompt 0 ended in an error" in warnings["unfinished_pass"]
    states = ask("SELECT DISTINCT prompt_id, state FROM states WHERE run_id = $run ORDER BY ALL")
    assert states == [*([(0, "initial")] if step else []), (1, "initial")]
    assert states == ask(
        "SELECT prompt_id, state FROM state_tokens WHERE run_id = $run ORDER BY ALL"
    )
    assert not check.check(lab._lake)


def test_a_model_that_is_offloaded_is_recorded_as_one_that_is_not(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    vectors = []
    for model in (fresh(), accelerate.cpu_offload(fresh(), execution_device=torch.device("cpu"))):
        run = warehouse.record(
            model,
            tiny.tokenizer(),
            CHAT,
            warehouse=tmp_path,
            generation={"max_new_tokens": 2},
            capture=FLOAT,
        )
        lab = warehouse.open(tmp_path)
        vectors.append(
            [lab.tensor(run, site, layer=1, step=1) for site in ("hidden_out", "attn_out", "q")]
        )
    np.testing.assert_array_equal(*vectors)


@pytest.mark.parametrize(
    "weight", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"]
)
def test_a_model_that_gives_no_numbers_is_told_so(tmp_path, weight):
    model = fresh()
    model.get_parameter(weight).data[0] = torch.nan
    with pytest.raises(AlabError, match=r"its logits are not numbers \(NaN\)"):
        warehouse.record(model, tiny.tokenizer(), CHAT, warehouse=tmp_path)


@pytest.mark.parametrize(
    "asked", [{"forced_eos_token_id": 9999}, {"begin_suppress_tokens": [9999]}]
)
def test_a_generation_config_with_ids_beyond_the_vocabulary(tmp_path, asked):
    model = fresh()
    model.generation_config.update(**asked)
    try:
        run = warehouse.record(
            model, tiny.tokenizer(), CHAT, warehouse=tmp_path, generation={"max_new_tokens": 2}
        )
    except AlabError as error:
        assert "generation_config" in str(error)
    else:  # ids that transformers passes over
        assert "begin_suppress_tokens" in asked and run


@pytest.mark.parametrize("weight", ["lm_head.weight", "model.layers.2.mlp.up_proj.weight"])
def test_weights_that_change_without_leaving_a_trace(tmp_path, weight):
    model, told = fresh(), []
    for change in (False, True):
        with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept:
            model(IDS)
            if change:
                model.get_parameter(weight).data[3, 3] += 1  # which autograd's versions do not see
            model(IDS)
        codes = "SELECT code FROM warnings WHERE run_id = $run AND code = 'model_changed'"
        told.append(bool(warehouse.open(tmp_path).sql(codes, run=kept.run_id).fetchall()))
    assert told == [False, True]


@pytest.mark.parametrize("broken", [False, True])
def test_a_cache_that_does_not_continue_is_told(tmp_path, broken):
    model = fresh()
    if broken:  # as recurrent states do that are not handed on rightly

        def forgets(module, args, kwargs):
            cache = kwargs.get("past_key_values", kwargs.get("cache"))
            if cache is not None and len(cache.layers) > 1 and cache.layers[1].get_seq_length():
                cache.layers[1].values = torch.zeros_like(cache.layers[1].values)

        model.model.layers[1].self_attn.register_forward_pre_hook(forgets, with_kwargs=True)
    run = warehouse.record(
        model, tiny.tokenizer(), CHAT, warehouse=tmp_path, generation={"max_new_tokens": 1}
    )
    codes = (
        warehouse.open(tmp_path)
        .sql("SELECT code FROM warnings WHERE run_id = $run", run=run)
        .fetchall()
    )
    assert (("cache",) in codes) == broken
