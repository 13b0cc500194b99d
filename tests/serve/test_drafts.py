"""Scenarios of the browser: what is wrong with a text and where; files in one folder and no other."""

import json
import sys

import pytest
import yaml
from captures import make_scenario
from queues import make_place, scenario

from warehouse.assets import asset_dir
from warehouse.capture import plan as plans
from warehouse.errors import AlabError, ConflictError, NotThereError
from warehouse.lake.lake import Lake
from warehouse.models import outline
from warehouse.scenario import parse
from warehouse.serve import drafts, estimate, models
from warehouse.serve.server import Allowed, Server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("drafts"))


@pytest.fixture
def server(place):
    return Server(Lake(place / "lab"))


def mistakes(server, text):
    return [(one.line, one.message) for one in drafts.check(server, text).mistakes]


def test_every_mistake_has_its_line(server):
    text = (
        "name: a b\nmodel:\n  id: m\n  # a comment\n  dtpye: float32\nprompt:\n  messages:\n"
        "    - role: user\n      content: 5\n"
    )
    told = dict(mistakes(server, text))
    assert "'a b' is not a name" in told[1] and "unknown key 'model.dtpye'" in told[5]
    assert "expected text, got 5" in told[9]
    assert mistakes(server, "name: x\nmodel: [\n")[0][0] == 3
    assert mistakes(server, "name: x\nname: y\n")[0] == (
        2, "the scenario, line 2, column 1: not valid YAML: the key 'name' is there twice"
    )  # fmt: skip


def test_shipped_scenarios_have_none(server):
    for name in drafts.examples():
        text = drafts.example(name)
        assert mistakes(server, text) == []
        assert text.count("#") == (asset_dir("scenarios") / f"{name}.yaml").read_text().count("#")


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "5", "a: &a [*a]", "\ud800", "a\0b", "[" * 5000, "x" * 300_000, "? {a: b}\n: c", "- - -",
     "a: !!python/object:os.system x", "a: 2020-13-45", "a: .nan\nb: 1e400",
     "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12))],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_any_text_is_answered(server, text):
    assert drafts.check(server, text).mistakes


def test_code_of_models_needs_the_server_s_consent(server, place):
    text = scenario(place).replace("  id:", "  trust_remote_code: true\n  id:")
    assert "runs no code of models" in mistakes(server, text)[0][1]
    with pytest.raises(AlabError, match="runs no code"):
        drafts.launchable(server, text)
    trusting = Server(server.lake, Allowed(trust_remote_code=True))
    assert mistakes(trusting, text) == []


def dataset(place, source):
    return scenario(place, prompt={"dataset": {"source": source, "text": "{{ a }}"}})


def test_data_lie_near_the_scenarios(server, place, tmp_path):
    folder = place / "scenarios"
    folder.mkdir(exist_ok=True)
    (folder / "mine.csv").write_text("a\n1\n")
    (place / "other.csv").write_text("a\n1\n")
    (tmp_path / "secret.csv").write_text("a\n1\n")
    (folder / "link.csv").unlink(missing_ok=True)
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    for source in ("mine.csv", str(place / "other.csv"), "../other.csv", "vega:airports", "m*.csv"):
        text, found = drafts.launchable(server, dataset(place, source))
        assert found.dataset.source in text
    for source in (
        str(tmp_path / "secret.csv"), "link.csv", "*.csv", "/etc/passwd", "../../../../etc/*", "~/x.csv", "a\0b",
        "~nobody-here/x", "/proc/self/environ",
    ):  # fmt: skip
        told = mistakes(server, dataset(place, source))
        assert "outside of the folders" in told[0][1], source
        assert told[0][0] == next(
            n for n, line in enumerate(dataset(place, source).split("\n"), 1) if "source:" in line
        )
    (folder / "link.csv").unlink()


NAMES = (
    "../x.yaml", "/etc/x.yaml", "a/b.yaml", "", ".hidden.yaml", "-x.yaml", "a\0.yaml", "x" * 300, "a b.yaml", "..",
    "a\n.yaml", "é.yaml", "<script>.yaml", "C:\\x.yaml",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_are_none(server, place, name, tmp_path):
    before = sorted(path for path in place.rglob("*"))
    with pytest.raises(AlabError):
        drafts.save(server, name, scenario(place), overwrite=True)
    with pytest.raises(AlabError):
        drafts.read(server, name)
    with pytest.raises(AlabError):
        drafts.example(name)
    assert sorted(path for path in place.rglob("*")) == before


def test_files_are_saved_whole_and_not_over_others(server, place):
    text = scenario(place)
    assert drafts.save(server, "mine", text, overwrite=False) == "mine.yaml"
    assert drafts.read(server, "mine.yaml") == text and "mine.yaml" in drafts.names(server)
    with pytest.raises(ConflictError, match="is there already"):
        drafts.save(server, "mine", text + "# more\n", overwrite=False)
    assert drafts.read(server, "mine.yaml") == text
    drafts.save(server, "mine", text + "# more\n", overwrite=True)
    assert drafts.read(server, "mine.yaml") == text + "# more\n"
    with pytest.raises(AlabError, match="line 1"):
        drafts.save(server, "broken", "name: [", overwrite=False)
    assert not [path for path in (place / "scenarios").iterdir() if path.name.startswith(".")]


def test_links_are_no_files_of_the_folder(server, place, tmp_path):
    (place / "scenarios").mkdir(exist_ok=True)
    secret = tmp_path / "secret.yaml"
    secret.write_text(scenario(place))
    link = place / "scenarios" / "link.yaml"
    link.symlink_to(secret)
    assert "link.yaml" not in drafts.names(server)
    with pytest.raises(AlabError):
        drafts.read(server, "link.yaml")
    with pytest.raises(AlabError, match="no file of this folder"):
        drafts.save(server, "link.yaml", scenario(place, "other"), overwrite=True)
    assert "other" not in secret.read_text() and link.is_symlink()
    link.unlink()


ROWS = {"name": "d", "model": {"id": "m"}, "prompt": {"dataset": {"source": "vega:airports", "text": "{{ name }}"}}}  # fmt: skip


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("start", [make_scenario().model_dump(mode="json"), ROWS])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"capture": {"sites": ["hidden_out", "logits"]}},
        {"capture": {"attention_weights": True, "layers": [0]}},
        {"capture": {"mlp": False}, "generation": {"max_new_tokens": 50}},
        {"generation": {"max_new_tokens": 0}, "output": {"dir": "x"}},
    ],
)
def test_a_run_gives_its_scenario_back(start, changes, listed):
    prompt = start["prompt"]
    asked = start | {"capture": {}, "prompt": [prompt] if listed and prompt == ROWS["prompt"] else prompt}  # fmt: skip
    scenario = parse(asked | changes)
    stored = scenario.model_dump_json()
    assert parse(json.loads(stored)) == scenario
    assert parse(yaml.safe_load(drafts.of_run(stored))) == scenario


def test_a_run_of_earlier_gives_its_scenario_back_too():
    sites = {"positions": ["last"], "sites": ["hidden_out"]}
    flags = {"qkv": True, "mlp": True, "attention_weights": True, "hidden_states": True, "logits": True}  # fmt: skip
    stored = json.dumps(ROWS | {"capture": sites | flags})
    assert parse(yaml.safe_load(drafts.of_run(stored))) == parse(ROWS | {"capture": sites})
    with pytest.raises(AlabError, match="the run's scenario"):
        drafts.of_run('{"tool": "another"}')


def test_what_is_usual_of_a_dataset_is_so_in_a_list_too():
    assert parse(ROWS | {"prompt": [ROWS["prompt"]]}) == parse(ROWS)


@pytest.mark.parametrize(
    "changes",
    [{}, {"capture": {"layers": [0]}}, {"capture": {"attention_weights": False, "logits": False}}],
)
def test_the_estimate_is_what_the_capture_itself_expects(
    server, place, changes, llama, monkeypatch
):
    """With the tokens that the tokenizer has (a byte each), both say the same number of bytes."""
    request = make_scenario(**changes)
    loaded, sites = llama
    plan = plans.make_plan(request, loaded, sites)
    facts = json.loads(outline.outline(str(place / "model"), None, "json"))
    kept = estimate.amounts(request, None)
    exact = estimate.Amounts(
        plan.prompts.tokens,
        plan.prompts.pairs if request.capture.keeps("attention") else 0,
        kept.states,
    )
    ours, theirs = estimate.bytes_of(request, exact, facts), plans.estimate_bytes(plan)
    assert abs(ours - theirs) < 0.12 * theirs


def test_models_that_are_here(place, tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--owner--small" / "snapshots" / "abc"
    cache.mkdir(parents=True)
    (cache / "config.json").write_text("{}")
    package = tmp_path / "site-packages" / "with_weights"
    package.mkdir(parents=True)
    (package / "w.gguf").write_bytes(b"x" * 9)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    there = {
        (m.id, m.gguf, m.place)
        for m in models.models([str(place / "model"), "gone/model", "a\0b", "-x"])
    }
    assert {
        ("owner/small", None, "cache"), ("package:with_weights", "w.gguf", "package"),
        (str(place / "model"), None, "directory"),
    } <= there  # fmt: skip
    assert not [one for one in there if one[0] in ("gone/model", "a\0b", "-x")]
    for id_, gguf in (
        ("gone/model", None),
        ("-h", None),
        ("", None),
        ("owner/small", "../x"),
        ("a\0b", None),
    ):
        with pytest.raises(NotThereError):
            models._stamp(id_, gguf, online=False)


def test_the_server_never_imports_torch():
    import subprocess

    code = (
        "import warehouse.serve.app, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
