"""What the page of tokens says of each token, against numpy; and what it answers to nonsense."""

import asyncio
import time

import numpy as np
import pytest
from pages_in_browser import served
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset
from tokens_as_numpy import Data, log_probabilities, reference, stored, vectors

from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.serve.server import unless_gone

AT = {"layer": 1, "site": "hidden_out"}


class Talk:
    """A lake with a conversation, the same without logits, and a dataset; and its server's data."""

    def __init__(self, folder):
        self.lake = Lake(folder / "lab")
        self.made = make_dataset(self.lake, rows=40)
        self.bare = make_run(self.lake, "bare", Shape(width=12, mlp=20, outputs=False), seed=4)
        self.run = make_run(self.lake, "talk", Shape(width=12, mlp=20, lens=True), seed=3)
        catalog.sync(self.lake)

    def vectors(self, site: str = "hidden_out", layer: int = 1) -> np.ndarray:
        """(tokens, width)."""
        return vectors(self.lake, self.run, site, layer)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    return Talk(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def data(talk):
    with served(talk.lake) as service:
        yield Data(service)


def cosines(vectors: np.ndarray, one: np.ndarray) -> np.ndarray:
    return vectors @ one / np.linalg.norm(vectors, axis=1) / np.linalg.norm(one)


def test_length_cosine_and_one_dimension(talk, data):
    own = talk.vectors()
    assert data.column("token_norm", run=talk.run, **AT) == pytest.approx(
        np.linalg.norm(own, axis=1)
    )
    found = data.column("token_cosine", run=talk.run, position=4, **AT)
    assert found == pytest.approx(cosines(own, own[4]))
    assert data.column("token_neuron", run=talk.run, neuron=7, **AT) == pytest.approx(own[:, 7])
    rows = data.ask("token_norm", run=talk.run, **AT)
    assert [row["position"] for row in rows] == list(range(len(own))) and rows[3]["token"] == "t3"


def test_projection_between_references_is_from_their_midpoint(talk, data):
    joy, fear = (reference(talk.lake, talk.run, label, **AT) for label in ("joy", "fear"))
    line = (joy - fear) / np.linalg.norm(joy - fear)
    rows = data.ask("token_reference", run=talk.run, positive="joy", negative="fear", **AT)
    expected = (talk.vectors() - (joy + fear) / 2) @ line
    assert [row["value"] for row in rows] == pytest.approx(expected)
    assert rows[0]["positive_end"] == pytest.approx((joy - (joy + fear) / 2) @ line)


def test_projection_on_the_labels_of_another_runs_dataset(talk, data):
    points = talk.made.matrix("hidden_out", 1).astype("f8")
    moods = np.array(talk.made.label("mood"), object)
    direction = points[moods == "joy"].mean(0) - points[moods == "fear"].mean(0)
    ends = {
        "source": talk.made.run_id,
        "label_column": "mood",
        "positive": "joy",
        "negative": "fear",
    }
    found = data.column("token_label", run=talk.run, **ends, **AT)
    assert found == pytest.approx(talk.vectors() @ direction / np.linalg.norm(direction))
    choices = data.ask("label_choices", source=talk.made.run_id)
    counts = {row["label"]: row["n"] for row in choices if row["label_column"] == "mood"}
    labels = talk.made.labels["mood"].to_pylist()
    assert counts == {mood: labels.count(mood) for mood in set(labels) - {None}}


def test_surprise_and_entropy_are_those_of_the_logits(talk, data):
    logits = stored(talk.lake, talk.run, "outputs", "logits")
    said = log_probabilities(np.array([logits[p] for p in sorted(logits)]))
    ids = [row["token_id"] for row in data.ask("run_tokens", run=talk.run)]
    surprise = data.column("token_surprise", run=talk.run)
    assert surprise[0] is None
    assert surprise[1:] == pytest.approx([-said[p, ids[p + 1]] for p in range(len(said))])
    entropy = data.column("token_entropy", run=talk.run)
    assert entropy[-1] is None and len(entropy) == len(said) + 1
    assert entropy[:-1] == pytest.approx(-(np.exp(said) * said).sum(1))


def test_without_logits_the_passes_say_what_they_know(talk, data):
    steps = data.ask("passes", run=talk.bare)
    tokens = data.ask("run_tokens", run=talk.bare)
    ends = {row["position"]: row["entropy"] for row in tokens if row["likeliest"] is not None}
    entropy = dict(
        zip(
            data.column("token_entropy", "position", run=talk.bare),
            data.column("token_entropy", run=talk.bare),
            strict=True,
        )
    )
    assert len(ends) == len(steps)
    assert {p: value for p, value in entropy.items() if value is not None} == pytest.approx(ends)
    surprise = data.column("token_surprise", run=talk.bare)
    assert [value is not None for value in surprise] == [p - 1 in ends for p in entropy]


def test_what_stands_beside_a_token(talk, data):
    own, at = talk.vectors(), {"run": talk.run, "position": 9, **AT}
    largest = np.argsort(-np.abs(own[9]), kind="stable")[:10]
    dims = data.ask("token_dims", **at)
    assert [row["dim"] for row in dims] == largest.tolist()
    assert [row["value"] for row in dims] == pytest.approx(own[9][largest])

    weights = stored(talk.lake, talk.run, "attention", "weights", 1)[1, 9]
    rows = data.ask("token_attention", run=talk.run, position=9, layer=1, head=1)
    assert {row["position"]: row["weight"] for row in rows} == pytest.approx(
        dict(enumerate(weights))
    )
    assert [row["weight"] for row in rows] == sorted(weights, reverse=True)

    top = data.ask("token_top", run=talk.run, position=13)
    assert top[0]["after_position"] == 13 and top[0]["step"] == 2
    assert top[0]["token"] == data.ask("run_tokens", run=talk.run)[13]["likeliest"]
    assert data.ask("token_top", run=talk.run, position=2)[0]["after_position"] == 11

    lens = data.ask("token_lens", run=talk.run, position=11)
    assert {row["layer"] for row in lens} == {0, 1, 2}
    one = data.ask("token_lens_layer", run=talk.run, layer=1)
    assert {row["position"]: row["token"] for row in one}[11] == next(
        row["token"] for row in lens if (row["layer"], row["rank"]) == (1, 0)
    )


def test_nearest_tokens_and_rows_in_the_lake(talk, data):
    own = talk.vectors()[6]
    others = {
        (talk.made.run_id, *place): value
        for place, value in zip(talk.made.places, talk.made.values["hidden_out", 1], strict=True)
    }
    for run in (talk.run, talk.bare):
        others |= {(run, 0, p): v for p, v in enumerate(vectors(talk.lake, run, "hidden_out", 1))}
    score = {place: cosines(value[None], own)[0] for place, value in others.items()}
    best = sorted(score, key=score.get, reverse=True)[:20]
    rows = data.ask("token_nearest", run=talk.run, position=6, **AT)
    assert [(r["run_id"], r["prompt_id"], r["position"]) for r in rows] == best
    assert [r["cosine"] for r in rows] == pytest.approx([score[place] for place in best])
    assert best[0] == (talk.run, 0, 6)
    pasted = f"[{','.join(map(repr, own.tolist()))}]"
    assert data.ask("search_vector", vector=pasted, **AT) == rows
    reads = data.ask("layer_reads", **AT)
    (reads,) = reads
    assert reads["runs"] == 3

    points = talk.made.matrix("hidden_out", 1)
    order = np.argsort(-cosines(points, own), kind="stable")[:20]
    prompts = [talk.made.selectors["last"][row][0] for row in order]
    near = data.ask("search_near_prompts", run=talk.run, position=6, source=talk.made.run_id, **AT)
    assert [row["prompt_id"] for row in near] == prompts
    assert near == data.ask("search_vector_prompts", vector=pasted, source=talk.made.run_id, **AT)


def test_what_a_look_reads_is_what_is_there(talk, data):
    (reads,) = data.ask("layer_reads", layer=1, site="attn_out")
    assert reads == {"runs": 2, "vectors": 2 * (12 + 4 - 1)}  # the dataset has no such site
    assert data.ask("layer_reads", layer=77, site="q") == [{"runs": 0, "vectors": 0}]


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_every_colour_is_a_file_too(talk, data, form):
    answer = data.client.get(f"/data/token_norm.{form}", params={"run": talk.run, **AT})
    assert answer.status_code == 200 and len(answer.content) > 100


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("/run/nobody/tokens", 404, "there is no run 'nobody'"),
        ("/data/token_norm?run=nobody&layer=1&site=q", 404, "there is no run 'nobody'"),
        ("/run/latest:talk/tokens?prompt=7", 404, "no tokens of conversation 7"),
        ("/run/latest:talk/tokens?prompt=-1", 404, "no tokens of conversation -1"),
        ("/run/latest:talk/tokens?prompt=x", 400, "prompt is a whole number"),
        ("/data/token_norm?run=latest:talk&layer=1&site=nothing", 400, "unknown site"),
        ("/data/token_norm?run=latest:talk&layer=1", 400, "token_norm needs site"),
        ("/data/token_norm?run=latest:talk&layer=one&site=q", 400, "layer is a whole number"),
        ("/data/token_label?run=latest:talk&layer=1&site=hidden_out&source=latest:set&label_column=no"
         "&positive=a&negative=b", 400, "the dataset has no column 'no'"),
        ("/data/search_vector?layer=1&site=q&vector=%5B1,x%5D", 400, "Conversion Error"),
        ("/search?layer=x", 400, "layer is a whole number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data, address, status, said):
    answer = data.client.get(address)
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text


@pytest.mark.parametrize("values", [{"layer": 99}, {"neuron": 5000}, {"prompt": 10**14}])
def test_what_was_not_captured_has_no_rows_or_no_values(talk, data, values):
    found = data.column("token_neuron", run=talk.run, **{"neuron": 0, **AT, **values})
    assert all(value is None for value in found)


def test_work_that_nobody_waits_for_is_stopped():
    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    ended = []

    async def work() -> bytes:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)
        return b""

    with pytest.raises(AlabError, match="nobody waits"):
        asyncio.run(unless_gone(Gone(), work()))
    assert ended == [True]


def test_work_that_is_soon_done_is_let_be():
    async def work() -> bytes:
        return b"done"

    assert asyncio.run(unless_gone(None, work())) == b"done"


def test_a_small_answer_waits_for_no_acknowledgement(data):
    """Each of many would take 40 ms, on a connection that is kept."""
    begin = time.perf_counter()
    for _ in range(40):
        data.client.get("/static/none/none")
    assert time.perf_counter() - begin < 40 * 0.04
