"""The search through a warehouse: what a text, a token and a vector find."""

import pytest
import synthetic
from pages_in_browser import served
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset
from tokens_as_numpy import Data

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake

HOSTILE = "</script><script>alert(1)</script>\u202e\"'&<b>"
TEXTS = ["100% sure_thing", "100x sureXthing", "Grüße, ΣΊΣΥΦΟΣ", HOSTILE, "long " * 400]


def with_words(monkeypatch) -> None:
    """Let synthetic runs say `TEXTS`, as messages and as tokens."""
    plain = synthetic.metadata

    def worded(*arguments):
        rows = plain(*arguments)
        for message, text in zip(rows["messages"], TEXTS, strict=False):
            message["content"] = text
        for token, text in zip(rows["tokens"], [" Hello", "Hello", "hello", HOSTILE], strict=False):
            token["token"] = text
        return rows

    monkeypatch.setattr(synthetic, "metadata", worded)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("words") / "lab")
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_words(monkeypatch)
        make_run(lake, "words", Shape())
    make_dataset(lake, rows=12)
    catalog.sync(lake)
    return lake


@pytest.fixture(scope="module")
def service(words):
    with served(words) as service:
        yield service


@pytest.fixture(scope="module")
def data(service):
    return Data(service)


def messages(data, q):
    return [row["message_index"] for row in data.ask("search_messages", q=q)]


def test_a_text_is_found_whatever_its_case(data):
    assert messages(data, "GRÜSSE") == [] and messages(data, "grüße") == [2]
    assert messages(data, "Σίσυφ") == [2]
    assert messages(data, "SURE") == [0, 1]


def test_signs_of_patterns_are_text(data):
    assert messages(data, "100%") == [0] and messages(data, "sure_t") == [0]
    assert messages(data, "%") == [0] and messages(data, "\\") == [] and messages(data, "") == []


def test_text_of_the_enemy_is_text(data):
    (row,) = data.ask("search_messages", q="</script>")
    assert row["excerpt"] == HOSTILE
    assert messages(data, "' or '1'='1") == []


def test_tokens_that_contain_it_and_those_that_are_it(data):
    assert [row["position"] for row in data.ask("search_tokens", q="hello")] == [0, 1, 2]
    exact = data.ask("search_exact", q="Hello")
    assert [row["position"] for row in exact] == [0, 1]
    assert exact[0]["excerpt"].startswith(" HelloHellohello</script>")


def test_rows_of_datasets_are_found_by_text_and_id(data):
    assert [row["prompt_id"] for row in data.ask("search_prompts", q="row 7")] == [7]
    assert [row["prompt_id"] for row in data.ask("search_prompts", q="prompt 7")] == [7]


def test_of_many_the_first_hundred_with_the_count(data):
    rows = data.ask("search_tokens", q="t")
    everything = data.ask("search_page")[0]["tokens"]
    assert len(rows) <= 100 and rows[0]["total"] >= len(rows) and rows[0]["total"] <= everything


@pytest.mark.parametrize("query", ["q=%00", "kind=nothing&q=x", "vector=%5B%5D", "source=nobody",
                                   "run=nobody&position=1&layer=1&site=q", "q=" + "x" * 5000])  # fmt: skip
def test_the_page_takes_whatever_an_address_says(data, query):
    answer = data.client.get(f"/search?{query}", headers={"accept": "text/html"})
    assert answer.status_code == 200 and "<h1>Search</h1>" in answer.text
