"""Values are rounded once and rightly, and what does not fit is kept and counted."""

import numpy as np
import pytest
import tiny
import torch
from captures import make_scenario, rows, run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from warehouse.capture import conversation as capture
from warehouse.capture.rounding import Rounding, SiteStats, change, residual_error
from warehouse.models import loading as models
from warehouse.models import sites

DTYPES = ["float32", "float16", "bfloat16"]


@given(
    values=arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)),
    dtype=st.sampled_from(DTYPES),
)
def test_each_value_is_rounded_or_kept_and_counted(values, dtype):
    seen, given_values = SiteStats(), torch.from_numpy(values)
    before = given_values.clone()
    result = Rounding(dtype)(given_values, seen).float()
    finite = np.isfinite(values)
    outside = finite & (np.abs(values) > torch.finfo(getattr(torch, dtype)).max)
    expected = torch.where(
        torch.from_numpy(outside | ~finite), before, before.to(getattr(torch, dtype)).float()
    )
    assert torch.equal(result.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    assert torch.equal(result.isnan(), expected.isnan())
    assert (seen.out_of_range, seen.nonfinite) == (outside.sum(), (~finite).sum())
    assert torch.equal(
        given_values.nan_to_num(), before.nan_to_num()
    )  # the model's own tensor is as it was


@pytest.mark.parametrize(
    ("value", "kept"), [(65504.0, False), (65505.0, True), (-65519.0, True), (65520.0, True)]
)
def test_the_edge_of_float16(value, kept):
    """65505 would round to 65504 and not to inf; it is out of range all the same."""
    seen = SiteStats()
    result = Rounding("float16")(torch.tensor([value, 1.0]), seen)
    assert result[0] == value
    assert seen.out_of_range == kept


def test_what_fits_takes_half_the_memory():
    values = torch.randn(4, 8)
    assert Rounding("float16")(values, SiteStats()).dtype == torch.float16
    assert Rounding("float32")(values, SiteStats()) is values
    half = values.bfloat16()
    assert Rounding("bfloat16")(half, SiteStats()) is half
    assert Rounding("float32")(half, SiteStats()).dtype == torch.float32


def test_the_residual_identity_is_measured_per_token():
    parts = {site: torch.randn(5, 6) for site in ("hidden_in", "attn_out", "mlp_down_out")}
    parts["hidden_out"] = sum(parts.values())
    parts["hidden_out"][1] *= 1e4  # a token like an attention sink, whose values dwarf the others'
    parts["hidden_in"][1] *= 1e4
    parts["attn_out"][1] *= 1e4
    parts["mlp_down_out"][1] *= 1e4
    parts["hidden_out"][3, 2] += 0.25
    largest = torch.stack(
        [parts[site][3].abs().max() for site in ("attn_out", "mlp_down_out", "hidden_out")]
    ).max()
    assert residual_error(parts) == pytest.approx(0.25 / float(largest), rel=1e-5)
    assert residual_error({site: parts[site] for site in ("hidden_in", "hidden_out")}) is None
    assert (
        residual_error({site: tensor for site, tensor in parts.items() if site != "hidden_in"})
        is None
    )


def test_the_residual_identity_is_about_the_blocks_own_output():
    parts = {site: torch.randn(5, 6) for site in ("hidden_in", "attn_out", "mlp_down_out")}
    parts["block_out"] = sum(parts.values())
    parts["hidden_out"] = parts["block_out"].clone()
    parts["hidden_out"][2, 4] += 3.0  # what a hook made of it
    assert residual_error(parts) < 1e-6
    largest = torch.stack(
        [parts[site][2].abs().max() for site in ("block_out", "hidden_out")]
    ).max()
    assert change(parts) == pytest.approx(3.0 / float(largest), rel=1e-5)
    assert change({"hidden_out": parts["hidden_out"]}) == 0.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_value_does_not_hide_a_residual_that_does_not_add_up(bad):
    parts = {site: torch.ones(6, 4) for site in ("hidden_in", "attn_out")}
    parts["hidden_out"] = sum(parts.values()) + 0.25
    parts["hidden_in"][5, 0] = parts["hidden_out"][5, 0] = bad
    assert residual_error(parts) == pytest.approx(0.25 / 2.25)


def test_a_sum_that_overflows_is_an_infinite_error():
    parts = {site: torch.ones(6, 4) for site in ("hidden_in", "attn_out")}
    parts["hidden_out"] = sum(parts.values())
    parts["hidden_out"][5, 0] = torch.inf
    assert residual_error(parts) == torch.inf


def test_what_lies_above_the_diagonal_is_not_counted():
    seen = SiteStats()
    Rounding("float16")(torch.full((2, 3, 5), torch.nan), seen, diagonal=2)
    assert seen.nonfinite == 2 * (3 + 4 + 5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_are_rounded_to_the_stored_precision(lake, llama, dtype):
    run(lake, llama)
    run_id = run(lake, llama, capture={"store_dtype": dtype})
    query = "select hidden_out from activations_of(?) order by layer, position"
    exact = np.array(
        [r[0] for r in rows(lake, query, rows(lake, "select min(run_id) from runs")[0][0])], "f4"
    )
    stored = np.array([r[0] for r in rows(lake, query, run_id)], "f4")
    assert np.array_equal(torch.from_numpy(exact).to(getattr(torch, dtype)).float().numpy(), stored)


def test_what_is_out_of_range_is_kept_and_counted(lake):
    model = tiny.model_of("olmo")
    weight = model.get_input_embeddings().weight
    before = weight.data.clone()
    try:
        weight.data[tiny.tokenizer()("H")["input_ids"][0]] = 1e6
        loaded = models.Loaded(model, tiny.tokenizer(), "tiny", "float32", "cpu")
        run_id = capture.capture_one(
            make_scenario(capture={"store_dtype": "float16"}), loaded, sites.discover(model), lake
        )
    finally:
        weight.data.copy_(before)
    assert rows(lake, "select max(list_max(embeddings)) from outputs_of(?)", run_id) == [(1e6,)]
    assert rows(lake, "select sum(n_out_of_range) > 0, sum(n_nonfinite) from sites") == [(True, 0)]
    assert any(code == "out_of_range" for (code,) in rows(lake, "select code from warnings"))
