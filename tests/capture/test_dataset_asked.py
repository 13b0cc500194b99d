"""What is asked of a dataset beside rows at positions: means alone, references, and a second look by its model."""

import copy
import json

import numpy as np
import pytest
from captures import loaded
from prompts_alone import capture, make, table

import warehouse
from warehouse.capture import batches, dataset_run, trees, verify
from warehouse.capture.conversation import capture_one
from warehouse.capture.shards import capture_share
from warehouse.catalog import check
from warehouse.errors import AlabError
from warehouse.models import loading, sites
from warehouse.scenario import parse

REFERENCES = [
    {"label": label, "messages": [{"role": "user", "content": f"how {label}"}]}
    for label in ("joy", "calm", "joy too")
]


@pytest.fixture(autouse=True)
def in_batches(monkeypatch):
    monkeypatch.setattr(trees, "FEWEST", 1 << 30)  # what a clock chooses
    monkeypatch.setattr(dataset_run, "SIZES", {"cpu": (8, 1 << 10)})


@pytest.fixture(scope="module")
def source():
    return table(20)


def of_another_configuration(pair):
    """The same weights in a model that computes something else."""
    model = copy.deepcopy(pair[0].model)
    model.config.rms_norm_eps = 0.5
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5
    return loaded(model)


def asked(request, **changes):
    return parse(request.model_dump(mode="json") | changes)


def test_references_are_read_as_those_of_a_conversation(lake, batched, source):
    request = asked(make(positions=["last"]), reference_states=REFERENCES)
    run_id = capture(lake, batched, request, source)
    replied = asked(make("answered"), reference_states=REFERENCES, generation={"max_new_tokens": 1})
    other = warehouse.open(lake.warehouse)
    reply_id = capture_one(replied, *batched, lake, source=source)
    sql = "select label, layer, site, vector from states_of($run) where state = 'reference' order by all"
    mine, theirs = (other.sql(sql, run=one).fetchall() for one in (run_id, reply_id))
    assert len(mine) == len(theirs) == 3 * 3 * len({row[2] for row in mine}) > 0
    for a, b in zip(mine, theirs, strict=True):
        assert a[:3] == b[:3] and np.allclose(a[3], b[3], atol=1e-5)
    count = other.sql("select count(*) from reference_states where run_id = $run", run=run_id)
    assert count.fetchall() == [(3,)] and check.check(lake, deep=True) == []
    # Rows are compared with them as any vectors are.
    nearest = other.sql(
        "select max_by(r.label, cosine(v.vector, r.vector)) from vectors_of($run, 2, 'hidden_out') v,"
        " (from states_of($run) where state = 'reference' and layer = 2 and site = 'hidden_out') r group by v.prompt_id",
        run=run_id,
    ).fetchall()  # fmt: skip
    assert len(nearest) == 20


def test_references_are_read_once_by_shards(lake, batched, source, monkeypatch):
    monkeypatch.setattr(batches, "SHARD", 5)
    request = asked(make(positions=["last"]), reference_states=REFERENCES)
    whole = capture(lake, batched, request, source)
    for which in ((3, 3), (1, 3), (2, 3), None):
        shared = capture_share(request, *batched, lake, which, source=source)
    sql = "select label, layer, site, vector from states_of($run) where state = 'reference' order by all"
    lab = warehouse.open(lake.warehouse)
    assert lab.sql(sql, run=whole).fetchall() == lab.sql(sql, run=shared).fetchall() != []


@pytest.mark.parametrize(
    ("capture_keys", "words"),
    [
        ({"sites": ["hidden_out", "q"]}, "q has no mean"),
        ({"sites": ["attention"]}, "attention has no mean"),
        ({"attention_weights": True}, "attention_weights has no mean"),
        ({"mlp": True}, "mlp has no mean"),
    ],
)
def test_means_alone_are_of_sites_that_have_some(capture_keys, words):
    with pytest.raises(AlabError, match=words):
        make(positions=["mean"], **capture_keys)
    make(positions=["mean", "last"], **capture_keys)


def test_means_alone(lake, batched, source):
    run_id = capture(lake, batched, make(positions=["mean"]), source)
    lab = warehouse.open(lake.warehouse)
    kept = lab.sql(
        "select distinct site from sites where run_id = $run and reason is null", run=run_id
    )
    assert {site for (site,) in kept.fetchall()} == {"hidden_in", "hidden_out", "attn_out", "mlp_down_out"}  # fmt: skip
    assert lab.matrix(run_id, "hidden_out", 1, "mean")[0].shape == (20, 32)
    with pytest.raises(AlabError, match=r"no selector 'last'.*\nThere are: mean$"):
        lab.matrix(run_id, "hidden_out", 1)
    assert json.loads(make(positions=["mean"]).model_dump_json())["capture"]["qkv"] is False


@pytest.mark.parametrize("new", [0, 2])
@pytest.mark.parametrize("positions", [["mean"], ["last", "mean"]])
def test_a_second_look_sees_means_and_no_ghosts(lake, batched, source, monkeypatch, positions, new):
    request = asked(make(positions=positions), generation={"max_new_tokens": new})
    if new:
        capture_one(request, *batched, lake, source=source)
    else:
        capture(lake, batched, request, source)
    monkeypatch.setattr(loading, "load_again", lambda *_: batched[0])
    assert verify.verify(lake) == []
    other = of_another_configuration(batched)
    monkeypatch.setattr(loading, "load_again", lambda *_: other)
    problems = verify.verify(lake)
    assert len(problems) == 16 and "inf" not in str(problems[0])


def stopped(lake, batched, source, monkeypatch, request) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(dataset_run, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            capture(lake, batched, request, source)
    return max(lake.unfinished())


def test_another_tokenizer_or_configuration_does_not_go_on(lake, batched, source, monkeypatch):
    request = make(dataset={"text": None, "messages": [{"role": "user", "content": "{{ word }}"}]})
    stopped(lake, batched, source, monkeypatch, request)
    other = of_another_configuration(batched)
    pair = other, sites.discover(other.model, sharing=False, batches=True)
    with pytest.raises(AlabError, match="the model's configuration changed"):
        capture(lake, pair, request, source, resume=True)
    template = batched[0].tokenizer.chat_template
    monkeypatch.setattr(
        batched[0].tokenizer, "chat_template", template.replace("user", "USER") + " "
    )
    with pytest.raises(AlabError, match="tokenizer, or its chat template"):
        capture(lake, batched, request, source, resume=True)


def test_of_several_that_were_stopped_the_one_that_is_asked_for_goes_on(
    lake, batched, source, monkeypatch
):
    first, second = make(positions=["last"]), make(positions=["all"])
    older = stopped(lake, batched, source, monkeypatch, first)
    newer = stopped(lake, batched, source, monkeypatch, second)
    assert older != newer and capture(lake, batched, first, source, resume=True) == older
    # A folder's shard goes on by itself, and begins where nothing was stopped.
    assert capture(lake, batched, second, source, resume=None) == newer
    assert capture(lake, batched, second, source, resume=None) not in (older, newer)
