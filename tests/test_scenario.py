"""The YAML: every key and default, and errors that say file, key and next step."""

import copy
import datetime
import json
import re
from pathlib import Path

import pytest
import yaml

from warehouse import mistakes, scenario
from warehouse.assets import asset_dir
from warehouse.capture.dataset import Dataset
from warehouse.errors import AlabError
from warehouse.prefixes import at_each_message
from warehouse.scenario_files import files_of, read_file

BASE = {
    "name": "a",
    "model": {"id": "x"},
    "prompt": {"messages": [{"role": "user", "content": "hi"}]},
}
MESSAGE = {"role": "user", "content": "hi"}


def test_defaults():
    s = scenario.parse(BASE)
    assert (s.model.dtype, s.model.device, s.model.gguf_file, s.model.trust_remote_code) == (
        "float16",
        "auto",
        None,
        False,
    )
    assert s.prompt[0].run_at_each_message is False
    g = s.generation
    assert (g.max_new_tokens, g.do_sample, g.temperature, g.top_k, g.top_p, g.seed) == (
        50,
        False,
        1.0,
        None,
        None,
        42,
    )
    c = s.capture
    assert c.hidden_states and c.attention_weights and c.qkv and c.mlp and c.logits
    assert (c.top_k_probs, c.layers, c.store_dtype) == (20, "all", "float16")
    assert (s.output.dir, s.output.format, s.reference_states) == (None, "parquet", [])


def test_a_list_of_prompts_and_one_run_per_message():
    s = scenario.parse(
        BASE
        | {
            "prompt": [
                {"messages": [MESSAGE]},
                {"messages": [MESSAGE] * 3, "run_at_each_message": True},
            ]
        }
    )
    runs = at_each_message(s)
    assert [r.name for r in runs] == ["a", "a-p01m00", "a-p01m01", "a-p01m02"]
    assert [len(r.prompt[0].messages) for r in runs] == [1, 1, 2, 3]
    assert [r.name for r in at_each_message(scenario.parse(BASE))] == ["a"]


@pytest.mark.parametrize(("change", "expected"), [
    (None, "got nothing"),
    ([1], "got a list"),
    ({"capture": {"attention_weight": True}}, "unknown key 'capture.attention_weight'.*Did you mean 'attention_weights'"),
    ({"prompt": {"mesages": []}}, "unknown key 'prompt.mesages'.*Did you mean 'messages'"),
    ({"zzzzzz": 1}, "unknown key 'zzzzzz'.*Known keys: name, model"),
    ({"name": None}, "name"),
    ({"name": ".hidden"}, "'.hidden' is not a name.*not starting with a dot"),
    ({"name": "a b"}, "is not a name"),
    ({"model": "gpt2"}, "model: expected a mapping, got 'gpt2'.*Its keys: id"),
    ({"prompt": {"messages": []}}, "prompt.messages is empty"),
    ({"prompt": {}}, "prompt: has neither messages nor text; give one of them"),
    ({"prompt": [BASE["prompt"], {"messages": [MESSAGE], "text": "x"}]}, r"prompt\[1\]: has messages and text"),
    ({"prompt": {"text": ""}}, "prompt.text is empty"),
    ({"prompt": {"text": "a\ud800"}}, "prompt.text: .*surrogate"),
    ({"prompt": {"text": "x", "template": {"a": 1}}}, "prompt: template is about messages"),
    ({"prompt": {"text": "x", "run_at_each_message": True}}, "prompt: run_at_each_message is about messages"),
    ({"prompt": {"text": "x", "add_generation_prompt": False}}, "prompt: add_generation_prompt is about messages"),
    ({"prompt": {"messages": [MESSAGE], "template": {"tokenize": True}}}, "prompt.template: tokenize is no option"),
    ({"prompt": {"messages": [MESSAGE], "template": {"add_generation_prompt": False}}}, "is a key of prompt itself"),
    ({"prompt": {"messages": [MESSAGE], "template": "x"}}, "prompt.template: .*mapping"),
    ({"prompt": {"messages": [MESSAGE], "chat_template_kwargs": {}}}, "unknown key.*Did you mean 'template'"),
    ({"prompt": []}, "prompt is empty"),
    ({"prompt": [BASE["prompt"], {"messages": [{"role": "robot", "content": "x"}]}]}, r"prompt\[1\].messages\[0\].role"),
    ({"prompt": {"messages": [{"role": "user", "content": "\ud800"}]}}, "surrogate"),
    ({"capture": {"layers": []}}, "layers is an empty list"),
    ({"capture": {"layers": 5}}, r"capture.layers: expected 'all' or a list of layers such as \[0, 5\], got 5$"),
    ({"name": "-x"}, "not starting with a dot or a dash"),
    ({"generation": {"temperature": 1e-320}}, "generation.temperature: 1e-320 is too small"),
    ({"generation": {"temperature": float("nan")}}, "generation.temperature"),
    ({"capture": {"layers": [1.5]}}, r"capture.layers\[0\]: expected a whole number, got 1.5$"),
    ({"capture": {"layers": [True]}}, r"capture.layers\[0\]: expected a whole number, got true$"),
    ({"capture": {"layers": {"a": 1}}}, r"capture.layers: expected 'all' or a list of layers .*, got {a: 1}$"),
    ({"capture": {"logits": "ja"}}, "capture.logits: expected true or false, got 'ja'$"),
    ({"capture": {2: 1}}, r"capture has a key that is not text: 2\nKnown keys: hidden_states"),
    ({"generation": {"seed": True}}, "generation.seed: expected a whole number, got true$"),
    ({"generation": {"max_new_tokens": "many"}}, "generation.max_new_tokens: expected a whole number, got 'many'$"),
    ({"generation": {"top_p": 0}}, "generation.top_p: expected a number above 0, got 0$"),
    ({"generation": {"top_k": 0}}, "generation.top_k: expected a whole number of at least 1, got 0$"),
    ({"generation": {"temperature": float("inf")}}, "generation.temperature: expected a finite number, got .inf$"),
    ({"model": {"id": 7}}, r"model.id: expected text, got 7\nPut it in quotes.$"),
    ({"model": {"id": ""}}, "model.id is empty$"),
    ({"model": {"id": "x", "dtype": "fp16"}}, "model.dtype: expected one of float16, bfloat16, float32, got 'fp16'$"),
    ({"strategy": 1}, "unknown key 'strategy'"),
    ({"prompt": None}, r"prompt: expected a mapping, got nothing\nIts keys: "),
    ({"prompt": {"messages": "hi"}}, "prompt.messages: expected a list, got 'hi'$"),
    ({"capture": {"states": False}, "reference_states": [{"label": "a", "messages": [MESSAGE]}]},
     "reference_states: a reference is a state, and capture.states is false"),
    ({"capture": {"store_dtype": "int8"}}, "capture.store_dtype"),
    ({"generation": {"max_new_tokens": -1}}, "generation.max_new_tokens"),
    ({"generation": {"top_p": 1.5}}, "generation.top_p"),
    ({"reference_states": [{"label": "a", "messages": [MESSAGE]}] * 2}, "label 'a' twice"),
    ({"reference_states": [{"label": "a", "messages": []}]}, r"reference_states\[0\].messages is empty"),
])  # fmt: skip
def test_errors_say_what_and_where(change, expected):
    data = BASE | change if isinstance(change, dict) else change
    with pytest.raises(AlabError, match="(?s)" + expected) as caught:
        scenario.parse(data, "file.yaml")
    assert str(caught.value).startswith("file.yaml")
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2


def test_texts_and_options_of_the_template():
    own = {
        "messages": [MESSAGE] * 2,
        "template": {"enable_thinking": False},
        "add_generation_prompt": False,
    }
    s = scenario.parse(BASE | {"prompt": [{"text": "Once"}, own | {"run_at_each_message": True}]})
    assert s.prompt[0].turns == [{"role": "text", "content": "Once"}]
    text, *runs = at_each_message(s)
    assert (text.name, text.prompt[0].text, [r.name for r in runs]) == (
        "a",
        "Once",
        ["a-p01m00", "a-p01m01"],
    )
    assert all(r.prompt[0].template == {"enable_thinking": False} for r in runs)
    assert not any(
        r.prompt[0].add_generation_prompt or r.prompt[0].run_at_each_message for r in runs
    )
    assert [len(r.prompt[0].turns) for r in runs] == [1, 2]
    assert scenario.parse(json.loads(s.model_dump_json())) == s
    roles = ["system", "developer", "user", "assistant", "tool"]
    several = {"messages": [{"role": role, "content": "x"} for role in roles]}
    assert [m.role for m in scenario.parse(BASE | {"prompt": several}).prompt[0].messages] == roles


def test_mistakes_are_told_all_at_once():
    data = {
        "modle": {"id": 1},
        "name": ".",
        "prompt": BASE["prompt"],
        "generation": {"top_p": 2, "seed": "x"},
    }
    with pytest.raises(AlabError) as caught:
        scenario.parse(data, "a.yaml")
    assert str(caught.value).splitlines() == [
        "a.yaml: 4 mistakes",  # that `model` is missing is told by `modle`
        "unknown key 'modle'. Did you mean 'model'?",
        "name: '.' is not a name. Allowed: letters, digits and . _ - , not starting with a dot or a dash",
        "generation.top_p: expected a number of at most 1, got 2",
        "generation.seed: expected a whole number, got 'x'",
    ]
    many = BASE | {"generation": {f"unknown{i}": 1 for i in range(9)}}
    with pytest.raises(AlabError) as caught:
        scenario.parse(many)
    lines = str(caught.value).splitlines()
    assert (lines[0], len(lines), lines[-1]) == ("scenario: 9 mistakes", 7, "and 4 more")


def _places(model, place=()):
    """Every key of a scenario, with a path to it: lists have one item."""
    for key, field in model.model_fields.items():
        inner = mistakes._model_in(field.annotation)
        yield (*place, key)
        if inner:
            yield from _places(
                inner, (*place, key, 0) if "list" in str(field.annotation) else (*place, key)
            )


@pytest.mark.parametrize("place", list(_places(scenario.Scenario)), ids=mistakes.name)
def test_no_mistake_is_told_in_the_words_of_python(place):
    """Whatever stands at any key: the name of the key, what was expected, and what is there."""
    whole = BASE | {"reference_states": [{"label": "a", "messages": [MESSAGE]}]}
    wrong = [
        None,
        1.5,
        -7,
        True,
        "#",
        "",
        [],
        {},
        [[]],
        {"a": 1},
        {2: 3},
        float("nan"),
        datetime.date(2026, 1, 1),
        10**400,
    ]
    told = 0
    for value in wrong:
        data = copy.deepcopy(whole)
        node = data
        for part, after in zip(place, [*place[1:], None], strict=True):
            if after is None:
                node[part] = value
            elif isinstance(node, dict):
                node = node.setdefault(part, [{}] if after == 0 else {})
                if part == "prompt" and after == 0:
                    data["prompt"] = node = [node] if isinstance(node, dict) else node
            else:
                node = node[part]
        try:
            scenario.parse(data, "a.yaml")
        except AlabError as error:
            told += 1
            assert len(str(error).splitlines()) <= 7
            assert str(error).startswith("a.yaml: ")
            words = r"[Ii]nput|[Ss]hould|\b(str|int|dict|bool)\b|string|integer|boolean|dictionary|something else|literal"
            assert not re.search(words, str(error)), error
    assert told > 2


def test_a_missing_key():
    with pytest.raises(AlabError, match="the key 'name' is missing"):
        scenario.parse({k: v for k, v in BASE.items() if k != "name"})


def test_files_that_are_no_scenarios(tmp_path):
    with pytest.raises(AlabError, match="there is no scenario file"):
        read_file(tmp_path / "none.yaml")
    with pytest.raises(AlabError, match="cannot read"):
        read_file(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AlabError, match="not UTF-8"):
        read_file(path)
    for text, problem in {
        "a: [1\nb: 2": "line 2, column 2: not valid YAML",
        "a: 1\nb: {c: 1, c: 2}": "line 2, column 11: not valid YAML: the key 'c' is there twice",
        "a: 2020-13-45": "not valid YAML: month",
        "[" * 5000: "not valid YAML: nested too deeply",
        "? [a]\n: 1": "not valid YAML",
        "x: [&b {a: 1}, &m {<<: *b, a: 2}]\ny: {<<: *m, a: 3}": "unknown key 'x'",
    }.items():
        path.write_text(text)
        with pytest.raises(AlabError, match=problem) as caught:
            read_file(path)
        assert caught.value.exit_code == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(AlabError, match="no scenario files"):
        files_of([tmp_path / "empty"])


def test_a_directory_of_scenarios(tmp_path):
    for name in ("b.yaml", "a.yml", "c.txt"):
        (tmp_path / name).write_text("{}")
    assert [p.name for p in files_of([tmp_path])] == ["a.yml", "b.yaml"]


def test_the_scenarios_we_ship_are_valid():
    paths = files_of([asset_dir("scenarios")])
    names = {read_file(path).name for path in paths}
    assert names == {"quickstart", "emotions", "sentiment", "airports"}
    emotions = read_file(asset_dir("scenarios") / "emotions.yaml")
    assert len(emotions.prompt[0].messages) == 20
    assert len(emotions.reference_states) >= 6


def test_the_datasets_we_ship_are_read_only_at_the_last_token_and_one_more():
    sentiment, airports = (
        read_file(asset_dir("scenarios") / f"{name}.yaml") for name in ("sentiment", "airports")
    )
    assert sentiment.capture.positions == ["last", "mean"]
    assert airports.capture.positions == ["last", "name"]
    for s in (sentiment, airports):
        assert (s.generation.max_new_tokens, s.capture.sites) == (0, ["hidden_out"])
    assert Path(sentiment.dataset.source) == asset_dir("scenarios") / "sentiment.csv"
    rows = Dataset(sentiment.dataset)
    assert (len(rows), rows.fields) == (400, {"sentence"})
    assert rows.labels.column_names == ["id", "sentence", "sentiment", "topic"]


def test_the_airports_are_those_of_the_contiguous_states():
    pytest.importorskip("vega_datasets", reason="pip install vega-datasets")
    rows = Dataset(read_file(asset_dir("scenarios") / "airports.yaml").dataset)
    assert len(rows) == 3061
    assert len(set(rows.labels["state"].to_pylist())) == 49
    first = next(rows.prompts())
    name, text = rows.labels["name"][0].as_py(), first.texts[0]
    assert text == f"{name} airport is located in the state of"
    assert first.spans["name"] == (0, 0, len(name))


def test_a_scenario_survives_its_own_json():
    s = read_file(asset_dir("scenarios") / "emotions.yaml")
    assert scenario.parse(json.loads(s.model_dump_json())) == s
    assert scenario.parse(yaml.safe_load(yaml.safe_dump(s.model_dump()))) == s
    assert "reference_states" in json.loads(scenario.json_schema())["properties"]
