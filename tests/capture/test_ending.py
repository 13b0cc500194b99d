"""What `alab capture` says: run ids on standard output; how it goes, the replies and what to do next on the other."""

import re

import pytest
import torch
import yaml
from captures import make_scenario, rows
from click.testing import CliRunner

from warehouse.capture import ending
from warehouse.cli import progress
from warehouse.cli.commands import main
from warehouse.lake.lake import Lake
from warehouse.models import limits, loading


@pytest.fixture
def alab(tmp_path, llama, monkeypatch):
    """Call `alab capture` on scenarios of a tiny llama, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALAB_WAREHOUSE", raising=False)
    monkeypatch.setattr(loading, "load", lambda spec, **options: llama[0])

    def call(*arguments, **changes):
        data = make_scenario(**changes).model_dump(exclude_unset=True)
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(data))
        return CliRunner().invoke(main, ["capture", "tiny.yaml", *arguments])

    return call


def prompts(count: int) -> list[dict]:
    return [{"messages": [{"role": "user", "content": f"Say {i}"}]} for i in range(count)]


def test_a_capture_ends_with_the_reply_and_the_next_command(alab, tmp_path):
    done = alab()
    run_id = done.stdout.removesuffix("\n")
    lake = Lake(tmp_path / "lab")
    assert lake.run_ids() == [run_id]
    reply = ending.shown(rows(lake, "select generated_text from prompts")[0][0])
    told = done.stderr.split("writing\n")[1]
    assert told.startswith(
        f"{reply}\n   it was cut at 4 tokens (generation.max_new_tokens)\nnext: "
    )
    assert told.endswith(f" report {run_id}\n")
    from_next = told.splitlines()[-1].removeprefix("next: ").partition(" report ")[2]
    assert CliRunner().invoke(main, ["report", from_next]).exit_code == 0


def test_a_reply_that_ended_by_itself(alab, llama, monkeypatch, tmp_path):
    alab()
    lake = Lake(tmp_path / "lab")
    token_id, token = rows(
        lake, "select generated_token_id, generated_token from steps where step = 1"
    )[0]
    monkeypatch.setattr(limits, "eos_ids", lambda *_: {token_id})
    done = alab()
    assert (
        f"   it ended by itself after 2 tokens, with {ending.shown(token)}\nnext: " in done.stderr
    )


def test_the_next_command_names_another_warehouse(alab, tmp_path):
    assert re.search(
        r"^next: \S+ -w 'my lab' report tiny_\S+$", alab("-w", "my lab").stderr, re.MULTILINE
    )
    done = alab(output={"dir": "theirs"})
    assert f"-w theirs report {done.stdout}" in done.stderr


def test_many_prompts_are_counted(alab, monkeypatch):
    calls = []
    original = progress.Bar.__call__
    monkeypatch.setattr(
        progress.Bar, "__call__", lambda self, *call: calls.append(call) or original(self, *call)
    )
    done = alab(prompt=prompts(5))
    counted = [call for call in calls if call[0] == "prompts"]
    assert [done for _, done, _ in counted] == sorted(done for _, done, _ in counted)
    assert {total for *_, total in counted} == {5}
    assert {done for _, done, _ in counted} == {0, 1, 2, 3, 4}
    assert calls[-1] == ("writing", 5, 5)
    lines = done.stderr.splitlines()
    assert lines[:4] == ["loading tiny", "prompts", "references", "writing"]
    assert [line[0] for line in lines if re.match(r"\d  ", line)] == ["0", "1", "2"]
    assert "… 5 prompts; 5 replies were cut, 0 ended by themselves" in lines


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_told_before_anything_is_loaded(alab, tmp_path, monkeypatch):
    alab()
    loads = []
    monkeypatch.setattr(loading, "load", lambda spec, **options: loads.append(spec))
    (tmp_path / "other.yaml").write_text(
        (tmp_path / "tiny.yaml").read_text().replace("device: cpu", "device: mps")
    )
    done = CliRunner().invoke(main, ["capture", "tiny.yaml", "other.yaml"])
    assert (done.exit_code, done.stdout, loads) == (1, "", [])
    assert done.stderr.startswith(
        "error: other.yaml: model.device: mps is not available here (there is: "
    )
    assert len(done.stderr.splitlines()) == 2


def test_many_runs_have_one_next_command(alab):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}] * 2
    done = alab(prompt={"run_at_each_message": True, "messages": messages})
    assert len(done.stdout.split()) == 4
    assert len(re.findall("^next: .*$", done.stderr, re.MULTILINE)) == 1
    assert done.stderr.endswith(" runs\n")


def test_text_that_would_steer_a_terminal_is_spelt():
    assert ending.shown("a\x1b[31m\rb\x07\x9b") == "a\\x1b[31m\\rb\\x07\\x9b"
    assert ending.shown("é 漢\n\tb") == "é 漢\n\tb"
    assert len(ending.shown("x" * 10_000)) == ending.CHARACTERS


class Terminal:
    """Standard error that is a terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_on_a_terminal_output_has_a_line_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress.bar() as bar:
        bar("loading", 0, 0)
        for _ in range(3):
            bar("prompts", 1, 4)
        bar.message("one\ntwo")
        bar("prompts", 4, 4)
    assert terminal.text == (
        f"loading\n\r\033[K{'█' * 7}{'░' * 21} 1/4  prompts\r\033[Kone\ntwo\n\r\033[K{'█' * 28} 4/4  prompts\r\033[K"
    )


def test_elsewhere_a_long_stage_says_how_far_it_is(monkeypatch, capsys):
    clock = iter([0, 4, 9.9, 10, 15, 20.5, 21])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar() as bar:
        for done in range(6):
            bar("prompts", done, 6)
        bar("writing", 6, 6)
    assert capsys.readouterr().err == "prompts\nprompts: 3 of 6\nprompts: 5 of 6\nwriting\n"
