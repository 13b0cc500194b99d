"""The head of the lens is kept by the fingerprint of the weights: other weights under a name never answer."""

import captures
import duckdb
import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload, disk_offload

import warehouse
from warehouse.capture import conversation as capture
from warehouse.errors import AlabError
from warehouse.lens import head as heads
from warehouse.lens import lens, store
from warehouse.models import loading as models
from warehouse.models import sites

MESSAGES = [{"role": "user", "content": "Hello world"}]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory of a model that is called `m`, from the directory that it is in."""
    monkeypatch.chdir(tmp_path)
    tiny.model_of("llama").save_pretrained("m")
    tiny.tokenizer().save_pretrained("m")
    return tmp_path


def tuned(eps: float):
    """The model of `m`, with its head changed a little or much and saved to the same place."""
    model = tiny.AutoModelForCausalLM.from_pretrained(
        "m", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(9))
    model.lm_head.weight.data.add_(noise * eps)
    model.save_pretrained("m")
    return model


def recorded(model, name: str) -> str:
    return warehouse.record(
        model, tiny.tokenizer(), MESSAGES, warehouse="lab", name=name, generation={"max_new_tokens": 2},
        capture={"store_dtype": "float32"},
    )  # fmt: skip


def state(lab, run: str) -> str:
    return f"(SELECT vector FROM states_of('{run}') WHERE state = 'initial' AND site = 'hidden_out' AND layer = 2)"


def truth(lab, model, run: str) -> list[tuple]:
    """The last layer's tokens at the prompt's end, by the model's own modules."""
    vector = torch.tensor(lab.vector(run, "hidden_out", 2, state="initial"))
    with torch.no_grad():
        best = model.lm_head(model.model.norm(vector)).log_softmax(-1).topk(3)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def close(found: list[tuple], expected: list[tuple]) -> None:
    assert [row[0] for row in found] == [row[0] for row in expected]
    np.testing.assert_allclose([row[1] for row in found], [row[1] for row in expected], atol=1e-4)


@pytest.mark.parametrize("eps", [0.01, 1.0])
def test_weights_that_change_under_a_name(place, eps):
    """After a little training as after much: each run's own numbers, in SQL and in the lens, or a refusal."""
    lab = warehouse.open("lab")
    first = tuned(0.0)
    before = recorded(first, "before")
    lab.logit_lens(before)
    ask = "SELECT token_id, logprob FROM lens_tokens({}, '{}', k := 3)"
    second = tuned(eps)
    after = recorded(second, "after")
    with pytest.raises(
        duckdb.Error, match=r"nothing is kept of the weights \w{32} that m ran with last"
    ):
        lab.sql(ask.format(state(lab, after), "m")).fetchall()
    with pytest.raises(
        duckdb.Error, match=r"nothing is kept of the weights \w{32} that after_\w+ ran with"
    ):
        lab.sql(ask.format(state(lab, after), after)).fetchall()
    lab.logit_lens(after)
    lens_of = "SELECT token_id, logprob FROM logit_lens_of('{}') WHERE step = 0 AND layer = 2 AND rank < 3 ORDER BY rank"
    ((theirs,),) = lab.sql(f"SELECT weights_hash FROM runs WHERE run_id = '{before}'").fetchall()
    for run, model, names in (
        (before, first, (before, theirs)),
        (after, second, (after, "latest", "m")),
    ):
        for name in names:
            close(lab.sql(ask.format(state(lab, run), name)).fetchall(), truth(lab, model, run))
        close(lab.sql(lens_of.format(run)).fetchall(), truth(lab, model, run))
    with pytest.raises(AlabError, match="the model that is given has other weights"):
        lab.logit_lens(before, model=second, tokenizer=tiny.tokenizer())


def test_a_head_is_not_taken_from_weights_that_are_no_longer_there(place):
    lab = warehouse.open("lab")
    model = tuned(0.0)
    run = recorded(model, "before")
    tuned(0.01)
    with pytest.raises(AlabError, match="m has other weights by now than before_"):
        lab.logit_lens(run)
    lab.logit_lens(run, model=model, tokenizer=tiny.tokenizer())
    close(lab.sql(f"SELECT token_id, logprob FROM lens_tokens({state(lab, run)}, 'm', k := 3)").fetchall(),
          truth(lab, model, run))  # fmt: skip


def test_equal_weights_under_two_names_share_what_is_kept(lake):
    for name in ("one", "two"):
        loaded = models.Loaded(tiny.model_of("llama"), tiny.tokenizer(), name, "float32", "cpu")
        run = capture.capture_one(
            captures.make_scenario(), loaded, sites.discover(loaded.model), lake
        )
        lens.logit_lens(lake, run, model=loaded if name == "one" else None)
    assert lake.models() == [loaded.weights_hash]


def test_a_run_without_a_fingerprint_keeps_to_its_model_s_name(lake):
    """As of alab 0.1: what is kept by name serves it, and is compared with what the run noted."""
    loaded = models.Loaded(tiny.model_of("llama"), tiny.tokenizer(), "tiny", "float32", "cpu")
    loaded.weights_hash = None
    run = capture.capture_one(captures.make_scenario(), loaded, sites.discover(loaded.model), lake)
    lens.logit_lens(lake, run, model=loaded)
    assert lake.models() == ["tiny"]
    lens.logit_lens(lake, run)
    query = "SELECT len(list(token_id)) FROM unembedding_of(?)"
    assert captures.rows(lake, query, run) == captures.rows(lake, query, "tiny") == [(tiny.VOCAB,)]
    head = heads.extract(loaded.model)
    head.unembedding, head.model = head.unembedding.flip(0) * 2, "tiny"
    for path in (lake.root / "models" / "tiny").iterdir():
        path.unlink()
    (lake.root / "models" / "tiny").rmdir()
    store.save(lake, "tiny", head)
    with pytest.raises(AlabError, match="do not give what the model said in this run"):
        lens.logit_lens(lake, run)
    with pytest.raises(AlabError, match="are not those of the model that is given"):
        lens.logit_lens(lake, run, model=loaded)


def test_a_run_in_half_precision_gets_the_numbers_that_ran(place):
    """Loaded in float16 on a CPU too: rounded weights are other weights than those of the file."""
    lab = warehouse.open("lab")
    model = tiny.AutoModelForCausalLM.from_pretrained(
        "m", dtype=torch.float16, attn_implementation="eager"
    ).eval()
    run = recorded(model, "half")
    lab.logit_lens(run)
    ((vector,),) = lab.sql(
        "SELECT vector FROM unembedding_of($run) WHERE token_id = 7", run=run
    ).fetchall()
    assert vector == model.lm_head.weight[7].tolist()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_head_whose_parameters_lie_elsewhere(tmp_path, where, tied):
    """Moved off by accelerate, whole or as from_pretrained does it: the same head as of the model on hand."""
    config = tiny.config_of("llama")
    config.tie_word_embeddings = tied
    tiny.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    load = tiny.AutoModelForCausalLM.from_pretrained
    expected = heads.extract(load(tmp_path / "m").eval())
    moved = load(tmp_path / "m").eval()
    if where == "disk":
        disk_offload(moved, str(tmp_path / "off"), execution_device="cpu")
    else:
        cpu_offload(moved, execution_device="cpu")
    parts = {
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.norm": "disk",
        "lm_head": "disk",
        "model.rotary_emb": "cpu",
    }
    parts |= {"model.embed_tokens": "disk"} if tied else {}
    mapped = (
        load(tmp_path / "m", device_map=parts, offload_folder=tmp_path / "map")
        if where == "disk"
        else moved
    )
    for model in (moved, mapped.eval()):
        assert model.model.norm.weight.is_meta
        found = heads.extract(model)
        for name in ("unembedding", "bias", "weight", "shift"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert (
            models.Loaded(model, None, "", "", "").weights_hash
            == models.Loaded(load(tmp_path / "m"), None, "", "", "").weights_hash
        )
