import doctest
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import duckdb
import numpy as np
import pytest
import tiny
import torch
from synthetic import Shape, make_run

import warehouse
from warehouse import api
from warehouse.capture import rowgroups as gather
from warehouse.catalog import catalog
from warehouse.catalog import removal as storage
from warehouse.errors import AlabError
from warehouse.lake import tensors


@pytest.fixture
def lab(two_runs):
    return warehouse.open(two_runs[0].warehouse)


def test_doctests(two_runs, tmp_path, monkeypatch):
    lake, _, beta = two_runs
    monkeypatch.chdir(lake.warehouse.parent)
    assert lake.warehouse.name == "lab"
    given = {"lab": warehouse.open("lab"), "run": beta, "folder": tmp_path}
    for module, examples in ((api.warehouse, 6), (api.arrays, 8), (api.merged, 9)):
        results = doctest.testmod(module, extraglobs=given)
        assert results.attempted >= examples
        assert results.failed == 0


HOUSE = Path(warehouse.__file__).parent
#: Modules with examples, but for those that need a warehouse or a model, which other tests run.
WITH_EXAMPLES = [
    ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts)
    for path in sorted(HOUSE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
    and path.stem not in ("__init__", "recording")
    and path.parent.name != "api"
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_doctests_elsewhere(module):
    results = doctest.testmod(import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


def test_importing_is_free():
    script = (
        "import sys, warehouse; heavy = {'torch', 'duckdb', 'pyarrow', 'numpy', 'click'} & set(sys.modules); "
        "assert not heavy, heavy; warehouse.open('lab'); assert 'torch' not in sys.modules; "
        "assert dir(warehouse) == ['AlabError', 'Warehouse', 'open', 'record', 'recording']"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_it_does_not_have():
    with pytest.raises(AttributeError, match="no attribute 'close'"):
        warehouse.close  # noqa: B018


def test_sql_binds_parameters(lab, two_runs):
    rows = lab.sql(
        "SELECT run_id FROM runs WHERE scenario = $name", name="alpha' OR 1 = 1"
    ).fetchall()
    assert rows == []
    assert lab.sql("SELECT run_id FROM runs WHERE scenario = $name", name="alpha").fetchall() == [
        (two_runs[1],)
    ]
    assert lab.sql("FROM intra_run('latest')").columns[:3] == ["run_id", "prompt_id", "site"]
    with pytest.raises(duckdb.Error):
        lab.sql("DELETE FROM runs").fetchall()


@pytest.mark.parametrize("site", ["hidden_in", "mlp_act", "q"])
def test_tensor_is_what_sql_gives(lab, two_runs, site):
    for step in (0, 2):
        found = lab.tensor("alpha", site, layer=1, step=step)
        query = f"SELECT {site} FROM activations WHERE run_id = $run AND layer = 1 AND step = $step ORDER BY position"
        rows = lab.sql(query, run=two_runs[1], step=step).fetchall()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.array([row[0] for row in rows], np.float32))


def test_tensors_of_outputs_and_attention(lab, two_runs):
    assert lab.tensor("latest", "logits", step=3).shape == (1, 40)
    np.testing.assert_array_equal(
        lab.tensor("alpha", "embeddings"), lab.tensor("alpha", "hidden_in", layer=0)
    )
    weights = lab.tensor("alpha", "attention", layer=2)
    assert weights.shape == (2, 12, 12)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not np.triu(weights, 1).any()


def test_vector_is_the_last_token(lab):
    for state, step in (("initial", 0), ("final", 3)):
        vector = lab.vector("alpha", "attn_out", 1, state=state)
        np.testing.assert_array_equal(
            vector, lab.tensor("alpha", "attn_out", layer=1, step=step)[-1]
        )
    assert lab.vector("alpha", "hidden_out", 0, state="snapshot", message=2).shape == (16,)


def test_torch(lab):
    torch = pytest.importorskip("torch")
    found = lab.tensor("alpha", "q", layer=0, as_torch=True)
    assert found.dtype == torch.float32
    assert lab.vector("alpha", "hidden_in", 0, as_torch=True).shape == (16,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lab: lab.tensor("gamma", "q", layer=0), "no run 'gamma'"),
        (
            lambda lab: lab.tensor("alpha", "queries", layer=0),
            "no site 'queries' in this run\nThere are: hidden_in",
        ),
        (lambda lab: lab.tensor("alpha", "q"), "each layer has its own q\nName one: layer=0 to 2"),
        (lambda lab: lab.tensor("alpha", "q", layer=3), "no layer 3 in this run\nThere are: 0-2"),
        (lambda lab: lab.tensor("alpha", "q", layer=-1), "'-1' is no layer"),
        (
            lambda lab: lab.tensor("alpha", "q", layer=0, step=4),
            "no step 4 of prompt 0 .*\nPrompt 0 has the steps 0-3",
        ),
        (lambda lab: lab.tensor("alpha", "q", layer=0, prompt=1), "no step 0 of prompt 1"),
        (
            lambda lab: lab.vector("alpha", "q", 0),
            "no site 'q'\nThere are: hidden_in, hidden_out, attn_out",
        ),
        (lambda lab: lab.vector("alpha", "hidden_in", 0, state="middle"), "no state 'middle'"),
        (lambda lab: lab.vector("alpha", "hidden_in", 7), "no final state of hidden_in in layer 7"),
        (
            lambda lab: lab.vector("alpha", "hidden_in", 0, state="reference", label="hate"),
            "There are: joy, fear, calm",
        ),
        (
            lambda lab: lab.vector("alpha", "hidden_in", 0, state="snapshot"),
            "There are: 0, 1, 2, 3, 4, 5",
        ),
    ],
)
def test_what_does_not_exist_is_named(lab, call, message):
    with pytest.raises(AlabError, match=message):
        call(lab)


def test_a_dropped_tensor(lake):
    run_id = make_run(lake, "one")
    lab = warehouse.open(lake.warehouse)
    assert lab.tensor(run_id, "q", layer=0).shape == (12, 16)
    storage.remove(lake, [run_id], activations_only=True)
    with pytest.raises(AlabError, match="no site 'q' in this run"):
        lab.tensor(run_id, "q", layer=0)
    assert lab.vector(run_id, "hidden_in", 0).shape == (16,)


def test_it_follows_the_lake_and_holds_nothing(lake):
    lab = warehouse.open(lake.warehouse)
    assert repr(lab).endswith("0 runs")
    assert "0 runs" in lab._repr_html_()
    with pytest.raises(AlabError, match="there is no warehouse"):
        lab.runs()
    first = make_run(lake, "first", Shape(steps=2))
    before = lab.runs()
    make_run(lake, "second", Shape(steps=2))
    catalog.sync(lake)  # would not open the file if this process had it open for reading
    assert len(lab.runs().fetchall()) == 2
    assert [row[0] for row in before.fetchall()] == [first]


def test_notebooks_show_the_runs(lab, two_runs):
    shown = lab._repr_html_()
    assert shown.startswith("<table>")
    assert all(run_id in shown for run_id in two_runs[1:])
    assert "<th>scenario</th>" in shown


def test_threads(lab):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(lab.tensor("alpha", "k", layer=0)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(found[0], other) for other in found)


def test_what_commands_do_a_notebook_does(tmp_path):
    model, tokenizer = tiny.model_of("llama"), tiny.tokenizer()
    run = warehouse.record(
        model,
        tokenizer,
        [{"role": "user", "content": "hello"}],
        warehouse=tmp_path / "lab",
        name="x",
    )
    lab = warehouse.open(tmp_path / "lab")
    assert repr(lab.inspect()).startswith(f"run          {run}\n")
    rows = lab.logit_lens(run, top_k=3, model=model, tokenizer=tokenizer)
    assert set(rows.columns) >= {"layer", "rank", "logprob", "kl"} and len(rows.fetchall()) % 3 == 0
    again = lab.logit_lens(run, top_k=2)  # the head is kept now
    assert len(again.fetchall()) % 2 == 0
    exported = lab.export(run, tmp_path / "arrays")
    copy = lab.import_run(exported, name="copy")
    for site in ("hidden_out", "attention"):
        assert np.array_equal(lab.tensor(run, site, layer=1), lab.tensor(copy, site, layer=1))
    assert lab.remove(run, copy) > 0
    assert lab.runs().fetchall() == []


@pytest.mark.parametrize(
    ("family", "at_once"), [("llama", 1 << 25), ("llama", 1), ("gemma2", 1 << 25)]
)
def test_attention_is_what_the_model_computed(tmp_path, monkeypatch, family, at_once):
    monkeypatch.setattr(tensors, "HEAD_VALUES", at_once)  # 1: a head at a time
    monkeypatch.setattr(gather, "ATTENTION_VALUES", 300)  # several row groups a pass
    model = tiny.model_of(family)  # that of gemma2 has a window of 64 tokens in every other layer
    ids = torch.randint(3, 90, (1, 80), generator=torch.Generator().manual_seed(0))
    with warehouse.recording(
        model, tiny.tokenizer(), warehouse=tmp_path / "lab", capture={"store_dtype": "float32"}
    ) as kept:
        output = model(ids, output_attentions=True, use_cache=True)
        step = model(ids[:, :1], past_key_values=output.past_key_values, output_attentions=True)
    lab = warehouse.open(tmp_path / "lab")
    for layer in range(len(output.attentions)):
        for number, seen in enumerate((output, step)):
            found = lab.tensor(kept.run_id, "attention", layer=layer, step=number, as_torch=True)
            weights = seen.attentions[layer][0]
            outside = (
                found.shape[-1] - weights.shape[-1]
            )  # keys that the window's cache has forgotten
            assert outside == (17 if family == "gemma2" and number and layer % 2 == 0 else 0)
            assert torch.equal(found[..., outside:], weights) and not found[..., :outside].any()
    copy = lab.import_run(lab.export(kept.run_id, tmp_path / "arrays"), name="copy")
    both = "SELECT step, layer, head, position, weights FROM attention_of($run) ORDER BY ALL"
    assert lab.sql(both, run=kept.run_id).fetchall() == lab.sql(both, run=copy).fetchall()
