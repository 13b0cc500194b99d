"""Hooks that a caller puts on modules: what is stored is what the model went on with, and no site is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import tiny
import torch

import warehouse
from warehouse.catalog import check
from warehouse.errors import AlabError
from warehouse.models import sites

IDS = torch.tensor([[5, 9, 12, 7, 30]])
VECTOR = torch.linspace(-2, 2, 32)
FLOAT = {"store_dtype": "float32"}


def added(module, args, output):
    """A steering vector on top of an output, as a new tensor."""
    first = output[0] if isinstance(output, tuple) else output
    return (first + VECTOR, *output[1:]) if isinstance(output, tuple) else first + VECTOR


def added_in_place(module, args, output):
    (output[0] if isinstance(output, tuple) else output).add_(VECTOR)


def added_to_input(module, args, kwargs):
    if args:
        return (args[0] + VECTOR, *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"] + VECTOR}


def doubled(module, args, output):
    return output * 2


def post(hook: Callable) -> Callable:
    return lambda module: module.register_forward_hook(hook)


def pre(hook: Callable) -> Callable:
    return lambda module: module.register_forward_pre_hook(hook, with_kwargs=True)


#: Where a caller may put a hook, and which.
HOOKS = {
    "block": ("model.layers.1", post(added)),
    "block in place": ("model.layers.1", post(added_in_place)),
    "last block": ("model.layers.2", post(added)),
    "block's input": ("model.layers.1", pre(added_to_input)),
    "first block's input": ("model.layers.0", pre(added_to_input)),
    "attention": ("model.layers.1.self_attn", post(added)),
    "attention in place": ("model.layers.1.self_attn", post(added_in_place)),
    "o_proj": ("model.layers.1.self_attn.o_proj", post(added)),
    "q_proj": ("model.layers.1.self_attn.q_proj", post(doubled)),
    "v_proj": ("model.layers.0.self_attn.v_proj", post(doubled)),
    "mlp": ("model.layers.0.mlp", post(added)),
    "mlp in place": ("model.layers.0.mlp", post(added_in_place)),
    "down_proj": ("model.layers.0.mlp.down_proj", post(added)),
    "down_proj's input": (
        "model.layers.0.mlp.down_proj", lambda module: module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    ),
    "gate": ("model.layers.2.mlp.gate_proj", post(doubled)),
    "embedding": ("model.embed_tokens", post(added)),
    "norm in a block": ("model.layers.1.input_layernorm", post(added)),
    "final norm": ("model.norm", post(added)),
    "head": ("lm_head", post(doubled)),
}  # fmt: skip
#: The module and side of each site of a llama's layer.
PORTS = {
    "hidden_in": ("", "in"), "hidden_out": ("", "out"), "q": ("self_attn.q_proj", "out"),
    "k": ("self_attn.k_proj", "out"), "v": ("self_attn.v_proj", "out"), "attn_out": ("self_attn", "out"),
    "mlp_gate": ("mlp.gate_proj", "out"), "mlp_up": ("mlp.up_proj", "out"), "mlp_down_in": ("mlp.down_proj", "in"),
    "mlp_down_out": ("mlp", "out"),
}  # fmt: skip


@contextmanager
def hooked(model, where: str) -> Iterator[None]:
    path, put = HOOKS[where]
    handle = put(model.get_submodule(path))
    try:
        yield
    finally:
        handle.remove()


def truth(model, where: str) -> dict:
    """Every site as the model goes on with it, by hooks that are put on after the caller's."""
    seen, handles = {}, []

    def keep(key, value):
        value = value[0] if isinstance(value, tuple) else value
        seen[key] = value[0].detach().clone()

    with hooked(model, where), torch.no_grad():
        for layer in range(3):
            for site, (path, side) in PORTS.items():
                module = model.get_submodule(f"model.layers.{layer}" + (path and f".{path}"))
                key = layer, site
                if side == "in":
                    handles.append(module.register_forward_pre_hook(
                        lambda m, a, k, key=key: keep(key, a[0] if a else k["hidden_states"]), with_kwargs=True))  # fmt: skip
                else:
                    handles.append(
                        module.register_forward_hook(lambda m, a, out, key=key: keep(key, out))
                    )
        seen["logits"] = model(IDS).logits[0].clone()
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recording with each hook, put on before the block and inside it: the warehouse, and run ids by (where, when)."""
    folder, model, runs = tmp_path_factory.mktemp("hooks"), tiny.model_of("llama"), {}
    for where in HOOKS:
        for when in ("before", "inside"):
            with (
                hooked(model, where) if when == "before" else nullcontext(),
                warehouse.recording(
                    model, tiny.tokenizer(), warehouse=folder, capture=FLOAT
                ) as kept,
                hooked(model, where) if when == "inside" else nullcontext(),
                torch.no_grad(),
            ):
                model(IDS)
            runs[where, when] = kept.run_id
    return warehouse.open(folder), runs


def stored(lab, run: str) -> dict:
    """Every site of every layer, and the logits, as the lake has them."""
    columns = ", ".join(PORTS)
    found = {}
    for layer, *vectors in lab.sql(
        f"SELECT layer, {columns} FROM activations_of($run) ORDER BY layer, position", run=run
    ).fetchall():
        for site, vector in zip(PORTS, vectors, strict=True):
            found.setdefault((layer, site), []).append(vector)
    found["logits"] = [
        row
        for (row,) in lab.sql(
            "SELECT logits FROM outputs_of($run) ORDER BY position", run=run
        ).fetchall()
    ]
    return {key: np.array(rows, np.float32) for key, rows in found.items()}


@pytest.mark.parametrize("when", ["inside", "before"])
@pytest.mark.parametrize("where", HOOKS)
def test_what_is_stored_is_what_the_model_went_on_with(recorded, where, when):
    lab, runs = recorded
    run, expected = runs[where, when], truth(tiny.model_of("llama"), where)
    values = stored(lab, run)
    assert values.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(values[key], tensor.numpy(), err_msg=str(key))
    rows = lab.sql(
        "SELECT residual_error, continuity_error, changed FROM layers WHERE run_id = $run ORDER BY layer",
        run=run,
    ).fetchall()
    assert all(error < 1e-6 for error, _, _ in rows)
    blocks = {"block": 1, "block in place": 1, "last block": 2}
    assert [changed > 0 for _, _, changed in rows] == [
        layer == blocks.get(where) for layer in range(3)
    ]
    # A hook on what reads a layer changes it on the way: that is said, of the layer before.
    gap = 0 if where == "block's input" else None
    assert [error > 0 for _, error, _ in rows] == [layer == gap for layer in range(3)]
    codes = {
        code
        for (code,) in lab.sql("SELECT code FROM warnings WHERE run_id = $run", run=run).fetchall()
    }
    assert codes == (
        {"changed"} if where in blocks else {"continuity"} if gap is not None else set()
    )


def test_the_recorded_runs_are_sound(recorded):
    assert not check.check(recorded[0]._lake, deep=True)


def test_the_size_of_a_change_is_measured(tmp_path):
    model = tiny.model_of("llama")
    expected = truth(model, "block")[1, "hidden_out"]
    with (
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path, capture=FLOAT),
        hooked(model, "block"),
    ):
        model(IDS)
    own = expected - VECTOR
    relative = VECTOR.abs().max() / torch.maximum(own.abs().amax(1), expected.abs().amax(1))
    (changed,) = (
        warehouse.open(tmp_path).sql("SELECT changed FROM layers WHERE layer = 1").fetchall()[0]
    )
    assert changed == pytest.approx(float(relative.max()), rel=1e-5)


def test_a_hook_between_two_blocks_is_measured(tmp_path):
    """A final norm that reads something else than the last block gave, and a block's changed input."""
    model = tiny.model_of("llama")
    norm = model.model.norm.register_forward_pre_hook(lambda module, args: (args[0] + VECTOR,))
    with (
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path, capture=FLOAT),
        torch.no_grad(),
    ):
        model(IDS)
    norm.remove()
    lab = warehouse.open(tmp_path)
    assert [gap > 0 for gap, in lab.sql("SELECT continuity_error FROM layers ORDER BY layer").fetchall()] == [
        False, False, True
    ]  # fmt: skip


def test_a_hook_that_comes_between_two_passes(tmp_path):
    model = tiny.model_of("llama")
    plain, steered = truth(model, "norm in a block"), truth(model, "block")
    with (
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path, capture=FLOAT) as kept,
        torch.no_grad(),
    ):
        with hooked(model, "norm in a block"):
            model(IDS)
        with hooked(model, "block"):
            model(IDS)
    lab = warehouse.open(tmp_path)
    for prompt, expected in enumerate((plain, steered)):
        for layer in range(3):
            values = lab.tensor(kept.run_id, "hidden_out", layer=layer, prompt=prompt)
            np.testing.assert_array_equal(values, expected[layer, "hidden_out"].numpy())


@pytest.mark.parametrize("where", ["block", "block in place", "mlp"])
def test_record_with_a_hook_in_float32_and_while_it_generates(tmp_path, where):
    model, tokenizer = tiny.model_of("llama"), tiny.tokenizer()
    with hooked(model, where):
        run = warehouse.record(
            model, tokenizer, [{"role": "user", "content": "Hi"}], warehouse=tmp_path, capture=FLOAT,
            generation={"max_new_tokens": 3},
        )  # fmt: skip
        lab = warehouse.open(tmp_path)
        ids = [
            i
            for (i,) in lab.sql(
                "SELECT token_id FROM tokens WHERE step IS NOT NULL ORDER BY position"
            ).fetchall()
        ]
        seen = []
        handle = model.model.layers[1].register_forward_hook(
            lambda m, a, out: seen.append(out.clone())
        )
        with torch.no_grad():
            model(torch.tensor([ids]))
        handle.remove()
    steps = [lab.tensor(run, "hidden_out", layer=1, step=step) for step in range(3)]
    np.testing.assert_allclose(np.concatenate(steps), seen[0][0].numpy(), rtol=1e-4, atol=1e-4)
    assert lab.sql("SELECT count(*) FROM sites WHERE reason IS NOT NULL").fetchall() == [(0,)]


def test_hooks_of_the_whole_process(tmp_path):
    """Global hooks come before all others; what is stored is after them."""
    model = tiny.model_of("llama")
    block = model.model.layers[1]
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: added(module, args, output) if module is block else None
    )
    try:
        with torch.no_grad(), warehouse.recording(
            model, tiny.tokenizer(), warehouse=tmp_path, capture=FLOAT
        ) as kept:  # fmt: skip
            expected = model(IDS, output_hidden_states=True).hidden_states[2][0]
    finally:
        handle.remove()
    lab = warehouse.open(tmp_path)
    np.testing.assert_array_equal(lab.tensor(kept.run_id, "hidden_out", layer=1), expected.numpy())
    reasons = lab.sql(
        "SELECT DISTINCT layer, site FROM sites WHERE reason IS NOT NULL ORDER BY ALL"
    ).fetchall()
    assert {layer for layer, _ in reasons} <= {
        1
    }  # the block's own output is not seen: nothing wrong is kept


def test_a_hook_that_changes_the_tokens_is_refused(tmp_path):
    model, handles = tiny.model_of("llama"), []
    with (
        pytest.raises(AlabError, match="changed the tokens"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
        torch.no_grad(),
    ):
        handles.append(model.register_forward_pre_hook(lambda m, args: (args[0] + 1,)))
        try:
            model(IDS)
        finally:
            handles[0].remove()


def test_hooks_are_gone_and_those_of_others_are_in_their_order(tmp_path):
    model, order = tiny.model_of("llama"), []
    block = model.model.layers[0]
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path), torch.no_grad():
        handles = [
            block.register_forward_hook(lambda m, a, o, n=n: order.append(n)) for n in range(3)
        ]
        model(IDS)
    model(IDS)
    assert order == [0, 1, 2] * 2
    for handle in handles:
        handle.remove()
    assert not [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
                if "warehouse" in (getattr(h, "__module__", None) or "")]  # fmt: skip


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, nullcontext])
def test_everything_inside_a_mode(tmp_path, mode):
    model = tiny.model_of("llama")
    with mode():
        found = sites.discover(model)
        with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept:
            model(IDS)
        run = warehouse.record(model, tiny.tokenizer(), [{"role": "user", "content": "Hi"}], warehouse=tmp_path,
                               generation={"max_new_tokens": 2})  # fmt: skip
    assert [len(layer.ports) for layer in found.layers] == [10] * 3
    assert warehouse.open(tmp_path).sql("SELECT count(*) FROM runs").fetchall() == [(2,)]
    assert kept.run_id != run


def test_weights_that_change_between_passes_are_said(tmp_path):
    torch.manual_seed(0)
    model = tiny.model_of("llama")
    weight = model.model.layers[1].mlp.down_proj.weight
    before = weight.detach().clone()
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept, torch.no_grad():
        model(IDS)
        weight.mul_(1.5)
        model(IDS)
    with torch.no_grad():
        weight.copy_(before)
    rows = warehouse.open(tmp_path).sql(
        "SELECT message FROM warnings WHERE run_id = $run AND code = 'model_changed'",
        run=kept.run_id,
    )
    assert [message for (message,) in rows.fetchall()] == [
        "the model's weights or adapters changed before pass 1"
    ]


@pytest.mark.parametrize(
    ("kept_of", "positions"), [(2, [3, 4]), (torch.tensor([0, 2]), [0, 2]), (0, [0, 1, 2, 3, 4])]
)
def test_logits_stand_on_the_tokens_they_are_of(tmp_path, kept_of, positions):
    model = tiny.model_of("llama")
    with (
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path, capture=FLOAT) as kept,
        torch.no_grad(),
    ):
        model(IDS, logits_to_keep=kept_of)
        whole = model(IDS).logits[0]
    lab = warehouse.open(tmp_path)
    rows = lab.sql("SELECT position, logits, embeddings IS NOT NULL FROM outputs_of($run) WHERE prompt_id = 0 ORDER BY 1",
                   run=kept.run_id).fetchall()  # fmt: skip
    assert all(embedded for _, _, embedded in rows)
    assert [position for position, _, _ in rows] == list(range(5))
    assert [position for position, logits, _ in rows if logits is not None] == positions
    for position, logits, _ in rows:
        if logits is not None:
            np.testing.assert_allclose(logits, whole[position], rtol=1e-5, atol=1e-5)
    ((best,),) = lab.sql("SELECT argmax_token_id FROM steps WHERE prompt_id = 0").fetchall()
    assert best == (int(whole[-1].argmax()) if 4 in positions else None)


@pytest.mark.parametrize("kept_of", [torch.tensor([2, 0]), torch.tensor([1, 1])])
def test_logits_in_no_order_are_refused(tmp_path, kept_of):
    model = tiny.model_of("llama")
    with (
        pytest.raises(AlabError, match="which tokens they are of"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
        torch.no_grad(),
    ):
        model(IDS, logits_to_keep=kept_of)
