"""Edits of a YAML text: the value is changed, and every other character stays."""

import difflib
import random

import pytest
import yaml

from warehouse.assets import asset_dir
from warehouse.errors import AlabError
from warehouse.scenario_files import load
from warehouse.serve.yaml_edit import edit, line_of, tree

SHIPPED = sorted(asset_dir("scenarios").glob("*.yaml"))
TEXT = """\
# what this is about
name: talk   # its name
model: {id: m, dtype: float32}   # small
prompt:
  # first, a turn
  messages:
  - role: user
    content: Hello   # says hello
  # then another
  - {role: assistant, content: "Hi: there"}
generation:
  max_new_tokens: 5   # few

# the tensors
capture:
  layers: [0, 1]
  sites:
    - hidden_out
    # of the MLP
    - mlp_up
"""


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"path": ["name"], "value": "other"}, 2),
        ({"path": ["model", "dtype"], "value": "float16"}, 2),
        ({"path": ["model", "device"], "value": "cpu"}, 2),
        ({"path": ["prompt", "messages", 0, "content"], "value": "Good day: # no comment"}, 2),
        ({"path": ["prompt", "messages", 1, "content"], "value": "x"}, 2),
        ({"path": ["prompt", "messages", 0, "content"], "value": "two\nlines"}, 4),
        ({"path": ["prompt", "messages", 0], "remove": True}, 2),
        ({"path": ["prompt", "messages", 0, "role"], "remove": True}, 3),
        ({"path": ["prompt", "messages", 1], "remove": True}, 1),
        ({"path": ["prompt", "messages"], "append": {"role": "user", "content": "And?"}}, 2),
        ({"path": ["generation", "seed"], "value": 7}, 1),
        ({"path": ["generation", "max_new_tokens"], "remove": True}, 2),
        ({"path": ["capture", "layers"], "value": "all"}, 2),
        ({"path": ["capture", "layers"], "append": -1}, 2),
        ({"path": ["capture", "sites", 0], "remove": True}, 1),
        ({"path": ["capture", "sites"], "append": "hidden_in"}, 1),
        ({"path": ["output", "dir"], "value": "lab"}, 2),
        ({"path": ["prompt", "template", "enable_thinking"], "value": False}, 2),
    ],
)
def test_an_edit_touches_its_lines_only(change, lines):
    after = edit(TEXT, [change])
    assert len(changed_lines(TEXT, after)) == lines, after
    if "value" in change:
        value = yaml.safe_load(after)
        for part in change["path"]:
            value = value[part]
        assert value == change["value"]
    assert after.count("#") - str(change).count("#") == TEXT.count("#") - (
        ("remove" in change) and change["path"] != ["prompt", "messages", 1]
        and "sites" not in change["path"] and "role" not in change["path"]
    )  # fmt: skip


def test_a_prompt_becomes_the_first_of_several():
    after = edit(TEXT, [{"path": ["prompt"], "append": {"text": "Once upon a time"}}])
    data = yaml.safe_load(after)
    assert data["prompt"] == [yaml.safe_load(TEXT)["prompt"], {"text": "Once upon a time"}]
    assert after.count("#") == TEXT.count("#")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_values_of_shipped_scenarios_change_in_place(path):
    """Every scalar of every scenario, and random removals, against the same change of the data."""
    text = path.read_text()

    def leaves(data, way=()):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            if isinstance(value, dict | list):
                yield from leaves(value, (*way, key))
            else:
                yield [*way, key]

    ways = list(leaves(yaml.safe_load(text)))
    for way in random.Random(0).sample(ways, min(len(ways), 25)):
        for value in ("x", "a: b # c", True, 3):
            after = edit(text, [{"path": way, "value": value}])
            assert after.count("\n") <= text.count("\n")
            assert after.count("#") >= text.count("#")
        edit(text, [{"path": way, "remove": True}])


VALUES = (
    "</script>", "it's", '"', "- x", "a\n\nb", " lead", "trail ", "tab\there", "no", "1.5", "null", "~", "é\nü", "\x85",
    "\u2028", "😀", "a: b", "#", "", "{x}", "%", "@a", "`", "|", "\\n", "line\n", "\ufeffx", "? y", "2020-01-01", "0x1f",
    "key:", "a\n  b", "\n", "=", "<<",
)  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_any_text_comes_back_as_it_was(value):
    for path in (["prompt", "messages", 0, "content"], ["prompt", "messages", 1, "content"], ["a"]):
        after = edit(TEXT, [{"path": path, "value": value}])
        found = yaml.safe_load(after)
        for part in path:
            found = found[part]
        assert found == value
    message = {"role": "user", "content": value}
    after = edit(TEXT, [{"path": ["prompt", "messages"], "append": message}])
    assert yaml.safe_load(after)["prompt"]["messages"][-1] == message


def test_from_nothing():
    after = edit(
        "# mine\n", [{"path": ["model", "id"], "value": "m"}, {"path": ["name"], "value": "n"}]
    )
    assert after.startswith("# mine\n") and yaml.safe_load(after) == {
        "model": {"id": "m"},
        "name": "n",
    }
    assert yaml.safe_load(edit("", [{"path": ["name"], "value": "n"}])) == {"name": "n"}


def test_what_cannot_be_changed_is_refused():
    for text, change in (
        ("a: &x {b: 1}\nc: *x\n", {"path": ["c"], "value": 2}),
        ("a: 1\n", {"path": ["a", 0, "b"], "value": 2}),
        ("a: [1]\n", {"path": ["a", 5], "value": 2}),
        ("a: 1\n", {"path": "a", "value": 2}),
        ("a: 1\n", {"path": [], "value": 2}),
        ("a: 1\n", {"path": [None], "value": 2}),
        ("a: [", {"path": ["a"], "value": 2}),
        ("- 1\n", {"path": ["a"], "value": 2}),
    ):
        with pytest.raises(AlabError):
            edit(text, [change])


def test_lines():
    root = tree(TEXT)
    assert line_of(root, ["name"]) == 2 and line_of(root, ["prompt", "messages", 1, "role"]) == 10
    assert line_of(root, ["capture", "sites", 1]) == 20 and line_of(root, ["generation", "x"]) == 11
    assert line_of(root, ["nothing"]) == 2 and line_of(None, ["x"]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "&a\nname: *a\n",
        "".join(f"a{n}: &a{n} [{f'*a{n - 1}, *a{n - 1}' if n else 1}]\n" for n in range(60)),
    ],
)
def test_aliases_that_stand_for_too_much_are_refused_before_anybody_walks_through_them(text):
    with pytest.raises(AlabError, match="its aliases stand for too much"):
        edit(text, [{"path": ["name"], "value": "x"}])
    with pytest.raises(AlabError, match="its aliases stand for too much"):
        load(text, "the scenario")


def test_paths_are_no_deeper_than_scenarios():
    with pytest.raises(AlabError, match="an edit has a path"):
        edit("a: 1\n", [{"path": ["a"] * 3000, "value": 1}])


COMMENTED = """\
prompt:
  text: |  # told
    one
    two
capture:
  sites: [hidden_out,  # first
    q]
"""


@pytest.mark.parametrize("value", ["a\nb", "one line", ""])
def test_what_is_said_behind_the_mark_of_a_block_stays(value):
    after = edit(COMMENTED, [{"path": ["prompt", "text"], "value": value}])
    assert yaml.safe_load(after)["prompt"]["text"] == value and "  # told\n" in after


def test_no_comment_is_lost_without_a_word():
    after = edit(COMMENTED, [{"path": ["capture", "sites", 1], "value": "k"}])
    assert yaml.safe_load(after)["capture"]["sites"] == ["hidden_out", "k"] and "# first" in after
    with pytest.raises(AlabError, match="'# first' would be lost\nChange it in the YAML"):
        edit(COMMENTED, [{"path": ["capture", "sites"], "value": ["q"]}])
    with pytest.raises(AlabError, match="'# of the MLP' would be lost"):
        edit(TEXT, [{"path": ["capture", "sites"], "value": ["hidden_in"]}])
    assert "# first" not in edit(COMMENTED, [{"path": ["capture", "sites"], "remove": True}])


def test_what_would_be_no_yaml_is_refused_by_the_name_of_what_was_changed():
    text = "a: &a x\nsites:\n  - *a\n"
    try:
        assert yaml.safe_load(edit(text, [{"path": ["sites"], "append": "q"}]))["sites"] == [
            "x",
            "q",
        ]
    except AlabError as error:
        assert "sites cannot be changed here" in str(error)
