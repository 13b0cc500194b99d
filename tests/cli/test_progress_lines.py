"""`alab capture --progress jsonl`: how a capture goes, as lines that programs read."""

import json
import signal
import subprocess
import sys

import pytest
import tiny
import yaml
from captures import make_scenario, rows
from click.testing import CliRunner

from warehouse.cli.commands import main
from warehouse.lake.lake import Lake
from warehouse.models import loading

ALAB = (sys.executable, "-m", "warehouse.cli")


def events_of(lines) -> list[dict]:
    """The events, without the seconds, which never go back."""
    events = [json.loads(line) for line in lines]
    seconds = [event.pop("seconds") for event in events]
    assert seconds == sorted(seconds)
    return events


@pytest.fixture
def alab(tmp_path, llama, monkeypatch):
    """Call `alab capture` on a scenario of a tiny llama; gives what it printed, and the events."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALAB_WAREHOUSE", raising=False)
    monkeypatch.setattr(loading, "load", lambda spec, **options: llama[0])

    def call(*arguments, **changes):
        data = make_scenario(**changes).model_dump(exclude_unset=True)
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(data))
        done = CliRunner().invoke(main, ["capture", "tiny.yaml", "--progress", "jsonl", *arguments])
        return done, events_of(done.stderr.splitlines())

    return call


def test_a_capture_tells_stages_the_reply_and_its_run(alab, tmp_path):
    done, events = alab()
    run_id = done.stdout.removesuffix("\n")
    lake = Lake(tmp_path / "lab")
    assert done.exit_code == 0 and lake.run_ids() == [run_id]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and events[-1] == {"event": "end", "exit_code": 0}
    assert {"event": "begun", "run": run_id} in events and {"event": "run", "run": run_id} in events
    assert kinds.index("begun") < kinds.index("token") < kinds.index("run")
    tokens = [(e["prompt"], e["step"], e["text"]) for e in events if e["event"] == "token"]
    assert tokens == rows(lake, "select prompt_id, step, generated_token from steps order by step")
    stages = [event for event in events if event["event"] == "stage"]
    assert stages[-1]["what"] == "writing" and stages[-1]["done"] == stages[-1]["total"] > 0
    assert [(s["what"], s["done"]) for s in stages] == list(
        dict.fromkeys((s["what"], s["done"]) for s in stages)
    )


def test_a_mistake_is_an_event_and_a_status(alab, tmp_path):
    done, events = alab(capture={"layers": [7]})
    assert done.exit_code == 2 and done.stdout == ""
    assert events[-2]["event"] == "error" and "there is no layer 7" in events[-2]["message"]
    assert events[-1] == {"event": "end", "exit_code": 2}
    (tmp_path / "none.yaml").unlink(missing_ok=True)
    missing = CliRunner().invoke(main, ["capture", "none.yaml", "--progress", "jsonl"])
    told = events_of(missing.stderr.splitlines())
    assert [event["event"] for event in told] == ["start", "error", "end"]
    assert missing.exit_code == told[-1]["exit_code"] == 2


def test_an_interrupt_is_an_event_also_where_the_parent_ignores_it(tmp_path):
    tiny.model_of("llama").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    data = make_scenario().model_dump(exclude_unset=True, mode="json")
    data["model"] = {"id": str(tmp_path / "model"), "dtype": "float32", "device": "cpu"}
    data["generation"] = {"max_new_tokens": 60, "do_sample": True}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(data))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell's background jobs have it
    try:
        child = subprocess.Popen(
            [*ALAB, "-w", "lab", "capture", "tiny.yaml", "--progress", "jsonl"],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    lines = []
    for line in child.stderr:
        lines.append(line)
        if '"token"' in line and '"step": 0' in line:
            child.send_signal(signal.SIGINT)
    events = events_of(lines)
    assert child.wait() == 130
    assert events[-2:] == [
        {"event": "interrupted", "text": "nothing unfinished was kept"},
        {"event": "end", "exit_code": 130},
    ]
    assert Lake(tmp_path / "lab").run_ids() == []


def test_a_dataset_that_is_only_read_is_summed_up_in_a_line(alab, tmp_path):
    (tmp_path / "rows.csv").write_text("word\n" + "\n".join(f"w{n}" for n in range(9)) + "\n")
    dataset = {"source": str(tmp_path / "rows.csv"), "text": "I see {{ word }}"}
    changes = {"prompt": {"dataset": dataset, "messages": None}, "reference_states": []}
    done, events = alab(generation={"max_new_tokens": 0}, **changes)
    assert done.exit_code == 0, done.stderr
    messages = [event["text"] for event in events if event["event"] == "message"]
    assert "9 prompts were read; nothing was generated" in messages
    assert len([text for text in messages if "generated" in text]) == 1
    assert not [event for event in events if event["event"] == "token"]
