"""Which contribution is which, by numbers; and that what does not add up is not in the lake."""

import copy

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import warehouse
import warehouse.errors
from warehouse.catalog.check import check
from warehouse.lake.lake import Lake
from warehouse.models import sites

CHAT = [{"role": "user", "content": "Hello there"}]
FLOAT = {"store_dtype": "float32"}


class Mixes(nn.Module):
    """Each token gets the mean of those up to it, mapped: mixes positions, and is called nothing of the kind."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(32, 32)

    def forward(self, x):
        return self.dense(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Alone(nn.Module):
    """Works on each position alone."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x):
        return self.narrow(torch.tanh(self.wide(x)))


class Layer(nn.Module):
    """A layer of blocks in some order, after each other or side by side, under any names."""

    def __init__(
        self,
        blocks: dict[str, type],
        parallel: bool = False,
        scale: float = 1.0,
        together: bool = False,
    ):
        super().__init__()
        for name, kind in blocks.items():
            self.add_module(name, kind())
        self.names, self.parallel, self.scale, self.together = (
            list(blocks),
            parallel,
            scale,
            together,
        )

    def forward(self, hidden_states, **_):
        given, result = hidden_states, hidden_states
        added = []
        for name in self.names:
            value = getattr(self, name)(given if self.parallel else result)
            added.append(value)
            if not self.together:
                result = result + value * self.scale if self.scale != 1 else result + value
        return result + sum(added[1:], added[0]) if self.together else result


def model_of(*arguments, **options) -> nn.Module:
    torch.manual_seed(0)
    model = copy.deepcopy(tiny.model_of("llama"))
    model.config.residual_multiplier = options.get("scale", 1.0)
    model.model.layers = nn.ModuleList([Layer(*arguments, **options) for _ in range(3)])
    return model.eval()


#: How layers are made → where attn_out and mlp_down_out are, after the layer's own path.
LAYERS = {
    "named the other way round": (({"mlp": Mixes, "self_attention": Alone},), {}, "mlp", "self_attention"),
    "named by letters": (({"a": Mixes, "b": Alone},), {}, "a", "b"),
    "the mixing block last": (({"first": Alone, "second": Mixes},), {}, "second", "first"),
    "side by side": (({"ffn": Mixes, "attn": Alone},), {"parallel": True}, "ffn", "attn"),
    "scaled": (({"x": Mixes, "y": Alone},), {"scale": 0.25}, "x", "y"),
    "one that mixes": (({"mlp": Mixes},), {}, "mlp", None),
    "one that does not": (({"attention": Alone},), {}, None, "attention"),
    "two that mix": (({"a": Mixes, "mlp": Mixes, "c": Alone},), {"parallel": True, "together": True}, "a + mlp", "c"),
    "routed and shared": (
        ({"t": Mixes, "routed": Alone, "shared": Alone},), {"parallel": True, "together": True}, "t", "routed + shared"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_what_mixes_positions_is_attention_whatever_it_is_called(kind):
    arguments, options, mixing, alone = LAYERS[kind]
    found = sites.discover(model_of(*arguments, **options))
    for layer in found.layers:
        for site, names in (("attn_out", mixing), ("mlp_down_out", alone)):
            port = layer.ports.get(site)
            if names is None:
                assert port is None
                assert layer.reasons[site].startswith("nothing that the layer adds")
            else:
                assert [
                    path.removeprefix(layer.module + ".") for path in port.modules
                ] == names.split(" + ")
                assert port.scale == options.get("scale", 1.0)
    assert not mixing or (
        not found.trees and not found.rewinds
    )  # a mixer without a cache cannot go on from one


class Once(Layer):
    """Calls its blocks as modules in the first pass alone; hooks see nothing of them later, as with faster code."""

    def forward(self, hidden_states, **options):
        result = hidden_states
        for name in self.names:
            block = getattr(self, name)
            result = result + (block(result) if not hasattr(self, "ran") else block.forward(result))
        self.ran = True
        return result


def test_what_could_not_be_compared_is_left_out():
    model = model_of({"a": Mixes, "b": Alone})
    model.model.layers = nn.ModuleList([Once({"a": Mixes, "b": Alone}) for _ in range(3)])
    for layer in sites.discover(model).layers:
        assert not {"attn_out", "mlp_down_out"} & layer.ports.keys()
        assert "could not be compared" in layer.reasons["attn_out"]


def of_kind(kind: str, **own) -> nn.Module:
    torch.manual_seed(0)
    small = {key: value for key, value in tiny._COMMON.items() if value is not None}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **small | own), attn_implementation="eager", dtype=torch.float32
    ).eval()
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=draw) * 0.1)
    return model


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}


@pytest.mark.parametrize(("kind", "own", "site", "parts"), [
    ("granitemoeshared", EXPERTS | {"shared_intermediate_size": 24, "residual_multiplier": 0.22}, "mlp_down_out",
     ("block_sparse_moe", "shared_mlp")),
    ("falcon_h1", MAMBA | {"mamba_d_ssm": 32}, "attn_out", ("mamba", "self_attn")),
])  # fmt: skip
def test_several_blocks_are_one_contribution(tmp_path, kind, own, site, parts):
    model = of_kind(kind, **own)
    seen: dict[str, list] = {part: [] for part in parts}
    layer = model.model.layers[1]
    run = warehouse.record(model, tiny.tokenizer(), CHAT, warehouse=tmp_path, capture=FLOAT,
                           generation={"max_new_tokens": 1})  # fmt: skip
    lab = warehouse.open(tmp_path)
    ids = [
        i
        for (i,) in lab.sql(
            "SELECT token_id FROM tokens WHERE step = 0 ORDER BY position"
        ).fetchall()
    ]
    for part in parts:
        layer.get_submodule(part).register_forward_hook(
            lambda m, a, out, part=part: seen[part].append(
                (out[0] if isinstance(out, tuple) else out).detach()
            )
        )
    with torch.no_grad():
        model(torch.tensor([ids]))
    scale = own.get("residual_multiplier", 1.0)
    expected = sum(scale * seen[part][0].reshape(len(ids), -1) for part in parts)
    np.testing.assert_allclose(lab.tensor(run, site, layer=1), expected, atol=1e-5)
    assert lab.sql("SELECT max(residual_error) < 1e-6 FROM layers").fetchall() == [(True,)]


def test_a_block_that_two_layers_share_is_told_apart_by_the_layer(tmp_path):
    model = copy.deepcopy(tiny.model_of("llama"))
    model.model.layers[2].mlp = model.model.layers[1].mlp
    run = warehouse.record(model, tiny.tokenizer(), CHAT, warehouse=tmp_path, capture=FLOAT,
                           generation={"max_new_tokens": 1})  # fmt: skip
    lab = warehouse.open(tmp_path)
    ids = [
        i
        for (i,) in lab.sql(
            "SELECT token_id FROM tokens WHERE step = 0 ORDER BY position"
        ).fetchall()
    ]
    outputs: dict[str, list] = {"mlp_up": [], "mlp_down_out": []}
    mlp = model.model.layers[1].mlp
    for site, module in (("mlp_up", mlp.up_proj), ("mlp_down_out", mlp)):
        module.register_forward_hook(
            lambda m, a, out, site=site: outputs[site].append(out[0].detach())
        )
    with torch.no_grad():
        model(torch.tensor([ids]))
    for site, (first, second) in outputs.items():
        np.testing.assert_array_equal(lab.tensor(run, site, layer=1), first)
        np.testing.assert_array_equal(lab.tensor(run, site, layer=2), second)
        assert not np.allclose(first, second)
    assert lab.sql("SELECT count(*) FROM sites WHERE reason IS NOT NULL").fetchall() == [(0,)]
    assert lab.sql("SELECT max(residual_error) < 1e-6 FROM layers").fetchall() == [(True,)]


class Leaking(nn.Module):
    """A layer that adds something of its own to tokens past the probe's eight: the identity holds in the probe only."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, **options):
        output = self.layer(hidden_states, **options)
        extra = (torch.arange(output.shape[1])[:, None] >= 9) * torch.linspace(
            -0.3, 0.3, output.shape[2]
        )
        return output + extra


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_contributions_that_do_not_add_up_are_taken_back(tmp_path, store):
    model = copy.deepcopy(tiny.model_of("llama"))
    model.model.layers[1] = Leaking(model.model.layers[1])
    sound = copy.deepcopy(tiny.model_of("llama"))
    reference = [{"label": "joy", "messages": [{"role": "user", "content": "A long joy, again"}]}]
    run, other = (
        warehouse.record(
            one, tiny.tokenizer(), CHAT, warehouse=tmp_path, name=name, reference_states=reference,
            capture={"store_dtype": store}, generation={"max_new_tokens": 3},
        ) for one, name in ((model, "leaking"), (sound, "sound"))
    )  # fmt: skip
    lab = warehouse.open(tmp_path)
    gone = lab.sql("""SELECT layer, site, module, width, reason LIKE 'hidden_in and the contributions do not add up%'
                      FROM sites WHERE run_id = $run AND reason IS NOT NULL ORDER BY ALL""", run=run)  # fmt: skip
    assert gone.fetchall() == [
        (1, "attn_out", None, None, True),
        (1, "mlp_down_out", None, None, True),
    ]
    counts = """SELECT layer, count(*), count(hidden_in), count(hidden_out), count(q), count(mlp_down_in),
                       count(attn_out), count(mlp_down_out) FROM activations WHERE run_id = $run
                GROUP BY layer ORDER BY layer"""  # fmt: skip
    (_, rows, *_), *_ = lab.sql(counts, run=other).fetchall()
    assert lab.sql(counts, run=other).fetchall() == [(layer, *[rows] * 7) for layer in range(3)]
    assert lab.sql(counts, run=run).fetchall() == [
        (0, *[rows] * 7), (1, *[rows] * 5, 0, 0), (2, *[rows] * 7)
    ]  # fmt: skip
    states = "SELECT DISTINCT layer, site FROM states WHERE run_id = $run ORDER BY ALL"
    missing = set(lab.sql(states, run=other).fetchall()) - set(lab.sql(states, run=run).fetchall())
    assert missing == {(1, "attn_out"), (1, "mlp_down_out")}
    # What stays is what was there: layer 0 of both models computes the same, and so is stored.
    for site in ("hidden_in", "hidden_out", "attn_out", "mlp_down_in"):
        np.testing.assert_array_equal(
            lab.tensor(run, site, layer=0), lab.tensor(other, site, layer=0)
        )
    assert lab.sql("SELECT count(*) FROM warnings WHERE run_id = $run AND code = 'missing_site'", run=run).fetchall() == [
        (2,)
    ]  # fmt: skip
    ((error,),) = lab.sql(
        "SELECT residual_error FROM layers WHERE run_id = $run AND layer = 1", run=run
    ).fetchall()
    assert error > 1e-3
    assert check(Lake(tmp_path), deep=True) == []
    assert lab.report(out=tmp_path / "report.html")
    with pytest.raises(warehouse.errors.AlabError, match="not captured in layer 1"):
        lab.tensor(run, "attn_out", layer=1)


def test_a_recording_takes_them_back_too(tmp_path):
    model = copy.deepcopy(tiny.model_of("llama"))
    model.model.layers[1] = Leaking(model.model.layers[1])
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path), torch.no_grad():
        model(torch.arange(5, 20)[None])
    lab = warehouse.open(tmp_path)
    assert lab.sql("SELECT layer, count(attn_out) FROM activations GROUP BY 1 ORDER BY 1").fetchall() == [
        (0, 15), (1, 0), (2, 15)
    ]  # fmt: skip
