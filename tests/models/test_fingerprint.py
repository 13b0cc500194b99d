"""The fingerprint of the weights: any value that changes changes it, and nothing else does."""

import captures
import pytest
import tiny
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn

from warehouse.models.fingerprint import _PIECE, fingerprint


def fresh(family: str = "llama", **options):
    """A model that shares nothing with the cached one."""
    return (
        tiny.model_of.__wrapped__(family, **options)
        if hasattr(tiny.model_of, "__wrapped__")
        else tiny.model_of(family, **options)
    )


def test_any_single_value_counts():
    """Every parameter, at its beginning, within and at its end, by the smallest change that there is."""
    model = fresh()
    seen = {fingerprint(model)}
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for at in (0, len(flat) // 2, len(flat) - 1):
            old = flat[at].clone()
            flat[at] = torch.nextafter(old, old + 1)
            seen.add(fingerprint(model))
            flat[at] = old
    assert len(seen) == 1 + 3 * len(list(model.parameters()))
    assert fingerprint(model) in seen


def test_values_that_change_places_count():
    model = fresh()
    before = fingerprint(model)
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]
    assert fingerprint(model) != before
    weight[[0, 1]] = weight[[1, 0]]
    mlp = [layer.mlp for layer in model.model.layers]
    mlp[0].up_proj.weight, mlp[1].up_proj.weight = mlp[1].up_proj.weight, mlp[0].up_proj.weight
    assert fingerprint(model) != before


def test_large_tensors_count_in_every_piece():
    layer = nn.Linear(3 * _PIECE // 4 // 16, 16, bias=False)
    before = fingerprint(layer)
    for at in (0, _PIECE // 4 - 1, _PIECE // 4, layer.weight.numel() - 1):
        layer.weight.data.view(-1)[at] += 1
        assert fingerprint(layer) != before
        layer.weight.data.view(-1)[at] -= 1


def test_what_does_not_count():
    """Attention's kind, passes, another load, views and strides; tied weights are one."""
    model = fresh()
    before = fingerprint(model)
    assert fingerprint(fresh(attention="sdpa")) == before
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    assert fingerprint(model) == before
    weight = model.lm_head.weight
    model.lm_head.weight = nn.Parameter(weight.data.T.contiguous().T)
    assert not model.lm_head.weight.is_contiguous()
    assert fingerprint(model) == before


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_weights_that_lie_elsewhere(tmp_path, offload):
    model = fresh()
    before = fingerprint(model)
    offload(model, **({"offload_dir": str(tmp_path)} if offload is disk_offload else {}))
    assert next(model.parameters()).is_meta
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn, torch.bool],
)
def test_every_precision(dtype):
    holder = nn.Module()
    holder.register_buffer("x", torch.arange(6).to(dtype))
    before = fingerprint(holder)
    holder.x[0] = 1
    assert fingerprint(holder) != before
    holder.register_buffer("x", torch.arange(6).to(dtype), persistent=False)
    assert fingerprint(holder) == fingerprint(nn.Module())


def test_runs_have_it(lake):
    loaded, found = captures.family("llama")
    run = captures.run(lake, (loaded, found))
    query = "SELECT weights_hash, revision, adapter FROM runs WHERE run_id = ?"
    assert captures.rows(lake, query, run) == [(fingerprint(loaded.model), None, None)]
