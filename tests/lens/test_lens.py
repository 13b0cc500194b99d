"""The logit lens against the model's own modules, and against the same in SQL."""

import json

import captures
import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner

from warehouse.capture import conversation as capture
from warehouse.catalog import catalog, check
from warehouse.catalog import removal as storage
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lens import head as heads
from warehouse.lens import lens, look, store
from warehouse.models import loading as models
from warehouse.models import sites
from warehouse.models.stack import decoder_layers

TOP = 5


@pytest.fixture(scope="module")
def llama() -> models.Loaded:
    return models.Loaded(tiny.model_of("llama"), tiny.tokenizer(), "tiny", "float32", "cpu")


@pytest.fixture
def run(lake, llama) -> str:
    return capture.capture_one(captures.make_scenario(), llama, sites.discover(llama.model), lake)


def rows(lake: Lake, query: str, *values) -> list[tuple]:
    with catalog.connect(lake) as db:
        return db.execute(query, list(values)).fetchall()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_head_of_every_family_gives_its_logits(family):
    """Within 1e-5 of the largest logit: rounding, in float32."""
    model = tiny.model_of(family)
    head = heads.extract(model)
    assert head.error < 1e-5
    tokens = torch.randint(0, tiny.VOCAB, (1, 12), generator=torch.Generator().manual_seed(7))
    seen = []
    handle = decoder_layers(model)[-1][1].register_forward_hook(
        lambda m, args, out: seen.append(out)
    )
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits[0]
    handle.remove()
    stream = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    found = head.logits(head.normed(stream.reshape(12, -1)))
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_head_that_changes_its_logits_is_refused():
    class Odd(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).pow(3)

    model = tiny.AutoModelForCausalLM.from_config(tiny.config_of("llama"))
    own = model.lm_head
    model.lm_head = Odd(own.in_features, own.out_features, bias=False)
    with pytest.raises(
        AlabError, match="LlamaForCausalLM: its final norm and unembedding give logits that are off"
    ):
        heads.extract(model.eval())


@pytest.mark.parametrize("blocks", [False, True])
def test_the_lens_is_norm_unembedding_and_softmax(lake, llama, run, monkeypatch, blocks):
    """Every column once more from the model's own modules, float32, within 1e-4 nats."""
    if blocks:
        monkeypatch.setattr(look, "LOGIT_VALUES", 1)  # the vocabulary in many blocks
        monkeypatch.setattr(lens, "ROWS", 5)
        monkeypatch.setattr(lens, "VECTOR_VALUES", 500)
    lens.logit_lens(lake, run, position="all", top_k=TOP, model=llama)
    streams = rows(lake, "select layer, position, hidden_out from activations order by all")
    following = dict(rows(lake, "select position - 1, token_id from tokens"))
    with torch.no_grad():
        vectors = torch.tensor([row[2] for row in streams])
        logits = (
            llama.model.lm_head(llama.model.model.norm(vectors)).double().view(3, -1, tiny.VOCAB)
        )
    logprobs = logits.log_softmax(-1)
    kl = (logprobs.exp() * (logprobs - logprobs[-1])).sum(-1)
    found = rows(lake, "select * from logit_lens order by layer, position, rank")
    assert len(found) == 3 * logits.shape[1] * TOP
    for i, row in enumerate(found):
        (
            _,
            _,
            _,
            position,
            layer,
            rank,
            token_id,
            token,
            logprob,
            distance,
            site,
            target,
            above,
            chance,
        ) = row
        own = logprobs[layer, position]
        assert (i % TOP, site, target) == (rank, "hidden_out", following[position])
        assert logprob == pytest.approx(float(own.sort(descending=True).values[rank]), abs=1e-4)
        assert float(own[token_id]) == pytest.approx(logprob, abs=1e-4)
        assert token == tiny_text(llama, token_id)
        assert distance == pytest.approx(float(kl[layer, position]), abs=1e-4)
        assert above == int((own > own[target]).sum())
        assert chance == pytest.approx(float(own[target]), abs=1e-4)


def tiny_text(llama, token_id: int) -> str | None:
    from warehouse.models.chat import Chat

    return Chat(llama.tokenizer).token_text(token_id) or None


def test_the_model_is_needed_once_and_the_generated_token_is_first(lake, llama, run):
    lens.logit_lens(lake, run, model=llama)
    lens.logit_lens(
        lake, run, site="contributions"
    )  # "tiny" cannot be loaded: the lake's copy is used
    last = rows(
        lake,
        "select site, step, next_rank, token_id, next_token_id from logit_lens where layer = 2 and rank = 0",
    )
    assert len(last) == 2 * 4
    assert all(rank == 0 and token == target for _, _, rank, token, target in last)  # greedy
    both = "select kl, next_logprob from logit_lens where site = ? order by step, layer, rank"
    np.testing.assert_allclose(
        rows(lake, both, "contributions"), rows(lake, both, "hidden_out"), atol=1e-4
    )
    assert check.check(lake) == []
    storage.remove(lake, [run], activations_only=True)
    assert rows(lake, "select count(*) from logit_lens")[0][0] > 0
    with pytest.raises(AlabError, match="has no activations"):
        lens.logit_lens(lake, run)
    storage.remove(lake, [run])
    assert rows(lake, "select count(*) from logit_lens") == [(0,)]


def test_sql_gives_the_same_without_the_model(lake, llama, run):
    lens.logit_lens(lake, run, top_k=TOP, model=llama)
    vector = f"(select hidden_out from activations_of('{run}') where step = 2 and layer = 1)"
    ours = rows(
        lake,
        "select rank, token_id, token, logprob from logit_lens where step = 2 and layer = 1 order by rank",
    )
    theirs = rows(
        lake, f"select rank, token_id, token, logprob from lens_tokens({vector}, 'tiny', k := 5)"
    )
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    np.testing.assert_allclose([r[3] for r in ours], [r[3] for r in theirs], atol=1e-4)
    promoted = rows(lake, f"select token_id, score from promoted_tokens({vector}, 'tiny', k := 3)")
    (values,) = rows(lake, f"select {vector}")[0]
    scores = llama.model.lm_head.weight @ (torch.tensor(values) * llama.model.model.norm.weight)
    best = scores.detach().topk(3)
    assert [row[0] for row in promoted] == best.indices.tolist()
    np.testing.assert_allclose([row[1] for row in promoted], best.values, rtol=1e-4)
    assert rows(lake, "select * from unembedding_of('no such model')") == []


def test_json(lake, llama, run, tmp_path):
    lens.logit_lens(
        lake, run, steps="1-2", top_k=2, json_file=tmp_path / "logit_lens.json", model=llama
    )
    found = json.loads((tmp_path / "logit_lens.json").read_text())
    assert [(t["step"], len(t["layers"]), len(t["layers"][0]["top"])) for t in found["tokens"]] == [
        (1, 3, 2),
        (2, 3, 2),
    ]
    assert found["tokens"][0].keys() == {
        "prompt_id",
        "step",
        "position",
        "next_token_id",
        "next_token",
        "layers",
    }
    with pytest.raises(AlabError, match=r"cannot write .*nowhere"):
        (tmp_path / "nowhere").touch()
        lens.logit_lens(lake, run, json_file=tmp_path / "nowhere" / "a.json")
    assert (
        len(rows(lake, "select distinct step from logit_lens")) == 2
    )  # the failed call changed nothing


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": "9"}, "there is no step 9 in this run"),
    ({"position": "99"}, "there is no position 99 in this run"),
    ({"position": "first"}, "'first' is no position"),
    ({"top_k": 0}, "--top-k is 0; it can be 1 to 300"),
    ({"top_k": 301}, "--top-k is 301"),
])  # fmt: skip
def test_what_does_not_exist_is_named(lake, llama, run, options, message):
    with pytest.raises(AlabError, match=message):
        lens.logit_lens(lake, run, model=llama, **options)


@pytest.mark.parametrize("position", ["last", "all", "0-1"])
def test_another_model_by_the_same_name_is_refused(lake, llama, run, position):
    head = heads.extract(llama.model)
    head.unembedding = head.unembedding.flip(0) * 2
    head.model = "tiny"
    store.save(lake, llama.weights_hash, head)
    with pytest.raises(AlabError, match="do not give what the model said in this run"):
        lens.logit_lens(lake, run, position=position)


def test_a_model_that_cannot_be_loaded(lake, run):
    result = CliRunner().invoke(main, ["-w", str(lake.warehouse), "logit-lens", run])
    assert result.exit_code == 1
    assert "cannot find 'tiny'" in result.output


@pytest.mark.parametrize("out", [slice(-40, None), slice(0, 40)])
def test_a_block_of_tokens_that_are_never_said(monkeypatch, out):
    """A vocabulary whose bias rules out its end, or its beginning: no probability there, no NaN."""
    draw = torch.Generator().manual_seed(3)
    vocabulary, width = 1000, 8
    bias = torch.randn(vocabulary, generator=draw)
    bias[out] = -torch.inf
    head = heads.Head(
        torch.randn(vocabulary, width, generator=draw),
        bias,
        torch.ones(width),
        torch.zeros(width),
        True,
        1e-5,
    )
    streams = torch.randn(2, 3, width, generator=draw)
    target = 400
    whole = look.look(head, streams, [target, -1], 5)
    monkeypatch.setattr(
        look, "LOGIT_VALUES", 6 * look._BUCKET
    )  # many blocks, one of them ruled out
    blocks = look.look(head, streams, [target, -1], 5)
    np.testing.assert_array_equal(blocks.top, whole.top)
    np.testing.assert_allclose(blocks.logprobs, whole.logprobs, atol=1e-5)
    assert np.isfinite(blocks.logprobs).all()
    np.testing.assert_array_equal(blocks.next_rank, whole.next_rank)
    own = head.logits(head.normed(streams.view(-1, width))).double().view(2, 3, -1)
    own = own.log_softmax(-1)
    said = torch.isfinite(own)
    kl = torch.where(said, own.exp() * (own - own[:, -1:]), 0.0).sum(-1)
    for answers in (whole, blocks):
        np.testing.assert_allclose(answers.kl, kl, atol=1e-5)
        np.testing.assert_allclose(answers.next_logprob[0], own[0, :, target], atol=1e-5)
